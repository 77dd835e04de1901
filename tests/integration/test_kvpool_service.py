"""The DRAM tier over real gRPC on loopback, with workers in processes of their own."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import grpc.aio
import pytest

from llmserve.core.clock import SystemClock
from llmserve.core.errors import InvalidRequest, LeaseEnded
from llmserve.kvstore.pool.arena import Arena
from llmserve.kvstore.pool.attached import AttachedArena
from llmserve.kvstore.pool.copier import CopyOutcome, PoolCopier
from llmserve.kvstore.pool.service import KVPoolService
from llmserve.kvstore.pool.slabs import SlabMap
from llmserve.kvstore.pool.table import PoolTable
from llmserve.kvstore.pool.wire import decode_reserved, decode_slot
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import kvpool_pb2 as pb
from llmserve.rpc.gen.llmserve.v1 import kvpool_pb2_grpc
from llmserve.rpc.server import RpcServer
from llmserve.rpc.status import from_grpc
from llmserve.transfer.shm.identity import Place
from tests.unit.kvstore.pool.worker_memory import BLOCK_BYTES, WorkerMemory

WAIT_SECONDS = 5.0


@dataclass
class Served:
    table: PoolTable
    stub: kvpool_pb2_grpc.KVPoolStub
    arena_id: str

    async def attach(self, user: str, pid: int) -> pb.AttachPoolResponse:
        here = Place.here()
        request = pb.AttachPoolRequest(
            user=user,
            block_bytes=[BLOCK_BYTES],
            boot_id=here.boot_id,
            pid_namespace=here.pid_namespace,
            pid=pid,
        )
        answer: pb.AttachPoolResponse = await self.stub.Attach(request, timeout=WAIT_SECONDS)
        return answer

    async def reserve(self, user: str, *keys: bytes, seconds: float = 30) -> pb.ReserveSlotsResponse:
        request = pb.ReserveSlotsRequest(
            arena_id=self.arena_id,
            user=user,
            keys=keys,
            length_bytes=[BLOCK_BYTES] * len(keys),
            seconds=seconds,
        )
        answer: pb.ReserveSlotsResponse = await self.stub.Reserve(request, timeout=WAIT_SECONDS)
        return answer

    async def pin(self, *keys: bytes) -> pb.PinBlocksResponse:
        request = pb.PinBlocksRequest(arena_id=self.arena_id, user="reader/1", keys=keys, seconds=30)
        answer: pb.PinBlocksResponse = await self.stub.Pin(request, timeout=WAIT_SECONDS)
        return answer

    async def release(self, lease_id: str, *corrupt: pb.PoolFill) -> pb.PinAnswer:
        request = pb.ReleasePinRequest(arena_id=self.arena_id, lease_id=lease_id, corrupt=corrupt)
        answer: pb.PinAnswerResponse = await self.stub.Release(request, timeout=WAIT_SECONDS)
        return answer.answer

    async def status(self) -> pb.GetPoolStatusResponse:
        request = pb.GetPoolStatusRequest()
        answer: pb.GetPoolStatusResponse = await self.stub.GetPoolStatus(request, timeout=WAIT_SECONDS)
        return answer


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena("service", 4 << 20)
    yield arena
    arena.close()


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
async def served(arena: Arena) -> AsyncIterator[Served]:
    slabs = SlabMap(arena.shape.capacity_bytes, 256 << 10)
    table = PoolTable(slabs, arena.generations, SystemClock())
    service, server = KVPoolService(arena, table, {"tcp": b"where"}), RpcServer("127.0.0.1:0")
    server.add(kvpool_pb2_grpc.add_KVPoolServicer_to_server, service, "llmserve.v1.KVPool")
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = kvpool_pb2_grpc.KVPoolStub(channel)  # type: ignore[no-untyped-call]
        yield Served(table, stub, arena.arena_id)
    service.close()
    await server.aclose()
    table.check_integrity()


async def test_a_prefix_is_stored_in_two_calls_and_loaded_in_two(served: Served) -> None:
    greeting = await served.attach("worker/1", os.getpid())
    assert [(one.name, one.description) for one in greeting.transports] == [("tcp", b"where")]
    attached, memory = AttachedArena(greeting.description), WorkerMemory(1)
    copier = PoolCopier(attached, memory.regions)
    reserved = [decode_reserved(one) for one in (await served.reserve("worker/1", b"a", b"b")).slots]
    slots = [one.slot for one in reserved]
    copied = copier.store(slots, memory.spans(0, 1))
    written = [
        pb.PoolFill(key=key, generation=slot.generation, checksum=one.checksum)
        for key, slot, one in zip((b"a", b"b"), slots, copied, strict=True)
    ]
    commit = pb.CommitSlotsRequest(arena_id=served.arena_id, written=[*written, written[0]])
    assert list((await served.stub.Commit(commit)).stored) == [True, True, False]
    pinned = await served.pin(b"a", b"x", b"b")
    assert [slot.generation > 0 for slot in pinned.slots] == [True, False, True]
    there = [decode_slot(slot) for slot in pinned.slots if slot.generation]
    done = copier.load(there, memory.spans(2, 3))
    assert [one.outcome for one in done] == [CopyOutcome.DONE] * 2
    assert memory.block(2) + memory.block(3) == memory.block(0) + memory.block(1)
    renew = pb.RenewPinRequest(arena_id=served.arena_id, lease_id=pinned.lease_id, seconds=10)
    assert (await served.stub.Renew(renew)).answer == pb.PIN_ANSWER_VALID
    assert await served.release(pinned.lease_id) == pb.PIN_ANSWER_VALID
    assert await served.release(pinned.lease_id) == pb.PIN_ANSWER_ENDED
    status = await served.status()
    assert (status.stored_blocks, status.held_bytes, status.open_leases) == (2, 2 * BLOCK_BYTES, 0)
    attached.close()


async def test_a_worker_that_is_killed_gives_its_slots_back_at_once(
    served: Served, sleeper: "subprocess.Popen[bytes]"
) -> None:
    await served.attach("worker/1", sleeper.pid)
    await served.reserve("worker/1", b"a", b"b", seconds=3600)
    assert (await served.status()).filling_blocks == 2
    sleeper.kill()
    sleeper.wait()
    while (await served.status()).filling_blocks:
        pass
    assert (await served.status()).used_bytes == 0


async def test_what_a_writer_gives_up_is_free(served: Served) -> None:
    [one] = (await served.reserve("worker/1", b"a")).slots
    given_up = [pb.PoolFill(key=b"a", generation=one.slot.generation)]
    await served.stub.Commit(pb.CommitSlotsRequest(arena_id=served.arena_id, given_up=given_up))
    assert (await served.status()).used_bytes == 0


async def test_a_corrupt_block_is_gone_with_its_lease(served: Served) -> None:
    [one] = (await served.reserve("worker/1", b"a")).slots
    fill = pb.PoolFill(key=b"a", generation=one.slot.generation)
    await served.stub.Commit(pb.CommitSlotsRequest(arena_id=served.arena_id, written=[fill]))
    pinned = await served.pin(b"a")
    assert await served.release(pinned.lease_id, fill) == pb.PIN_ANSWER_VALID
    assert [slot.generation for slot in (await served.pin(b"a")).slots] == [0]
    assert (await served.status()).used_bytes == 0


async def test_slots_of_an_earlier_pool_are_nobodys(served: Served) -> None:
    served.arena_id = "another"
    for call in (served.reserve("worker/1", b"a"), served.pin(b"a"), served.release("pin-1")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert isinstance(from_grpc(refused.value), LeaseEnded)


async def test_a_user_has_a_name(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.reserve("", b"a")
    assert isinstance(from_grpc(refused.value), InvalidRequest)
