"""The KV manager over real gRPC on loopback, with workers that only report."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.kvstore.role import KVManagerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc
from llmserve.rpc.status import from_grpc

WAIT_SECONDS = 30.0
Status = kvmanager_pb2.GetKvStatusResponse


def lease(
    name: str, state: str = "GRANTED", blocks: int = 4, seconds: float = 30
) -> kvmanager_pb2.LeaseReport:
    full = f"LEASE_STATE_{state}"
    return kvmanager_pb2.LeaseReport(lease_id=name, state=full, blocks=blocks, remaining_seconds=seconds)


class Worker:
    """One report stream."""

    def __init__(self, stub: kvmanager_pb2_grpc.KVManagerStub, name: str, epoch: int = 1) -> None:
        self._call = stub.Report()
        self._name, self._epoch = name, epoch

    async def report(
        self,
        sequence: int,
        stored: str = "",
        removed: str = "",
        *,
        snapshot: bool = False,
        leases: Sequence[kvmanager_pb2.LeaseReport] = (),
    ) -> kvmanager_pb2.KvReportAck:
        report = kvmanager_pb2.KvReport(
            worker_id=self._name,
            epoch=self._epoch,
            sequence=sequence,
            snapshot=snapshot,
            stored=[name.encode() for name in stored],
            removed=[name.encode() for name in removed],
            leases=leases,
        )
        async with asyncio.timeout(WAIT_SECONDS):
            await self._call.write(report)
            ack = await self._call.read()
        assert isinstance(ack, kvmanager_pb2.KvReportAck)
        assert ack.sequence == sequence
        return ack

    async def ended(self) -> grpc.StatusCode:
        async with asyncio.timeout(WAIT_SECONDS):
            code: grpc.StatusCode = await self._call.code()
        return code

    def vanish(self) -> None:
        self._call.cancel()


@dataclass
class Manager:
    role: KVManagerRole
    stub: kvmanager_pb2_grpc.KVManagerStub

    def worker(self, name: str, epoch: int = 1) -> Worker:
        return Worker(self.stub, name, epoch)

    async def lookup(self, blocks: str) -> dict[str, int]:
        request = kvmanager_pb2.LookupRequest(block_hashes=[name.encode() for name in blocks])
        answer = await self.stub.Lookup(request, timeout=WAIT_SECONDS)
        return dict(answer.prefix_blocks)

    async def status(self) -> Status:
        status: Status = await self.stub.GetKvStatus(kvmanager_pb2.GetKvStatusRequest(), timeout=WAIT_SECONDS)
        return status

    async def until(self, holds: Callable[[Status], bool]) -> Status:
        """For what the manager notices in its own time: a stream that broke."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds(status := await self.status()):  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)
        return status


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    async with AsyncExitStack() as stack:
        role = KVManagerRole(listen="127.0.0.1:0")
        stack.push_async_callback(role.aclose)
        await role.start()
        channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{role.port}"))
        yield Manager(role, kvmanager_pb2_grpc.KVManagerStub(channel))  # type: ignore[no-untyped-call]


async def test_look_ups_follow_the_reports(manager: Manager) -> None:
    x, y = manager.worker("x"), manager.worker("y")
    await x.report(1, "abc", snapshot=True)
    await y.report(1, "ab", snapshot=True)
    assert await manager.lookup("abcd") == {"x": 3, "y": 2}
    await x.report(2, removed="b")
    assert await manager.lookup("abcd") == {"x": 1, "y": 2}
    assert await manager.lookup("zz") == {}
    assert (await manager.status()).directory_blocks == 3


async def test_a_gap_asks_for_a_snapshot(manager: Manager) -> None:
    x = manager.worker("x")
    assert not (await x.report(1, "a", snapshot=True)).resync
    assert (await x.report(3, "c")).resync
    assert not (await x.report(4, "abc", snapshot=True)).resync
    assert await manager.lookup("abc") == {"x": 3}


async def test_leases_are_seen_until_they_end(manager: Manager) -> None:
    x = manager.worker("x")
    await x.report(1, snapshot=True, leases=[lease("a"), lease("b", blocks=1)])
    status = await manager.status()
    assert (status.open_leases, status.leased_blocks, status.orphan_blocks) == (2, 5, 0)
    await x.report(2, leases=[lease("a", "RELEASED"), lease("b", "EXPIRED")])
    status = await manager.status()
    assert (status.open_leases, status.leased_blocks, status.orphan_blocks) == (0, 0, 0)


async def test_a_worker_that_vanished_leaves_orphans_until_it_is_back(manager: Manager) -> None:
    x = manager.worker("x")
    await x.report(1, "a", snapshot=True, leases=[lease("a")])
    x.vanish()
    status = await manager.until(lambda status: not status.workers[0].connected)
    assert status.orphan_blocks == 4
    back = manager.worker("x", epoch=2)  # restarted: its memory and its leases are gone
    await back.report(1, "b", snapshot=True)
    status = await manager.status()
    assert (status.orphan_blocks, status.open_leases) == (0, 0)
    assert [(w.worker_id, w.epoch, w.connected, w.device_blocks) for w in status.workers] == [
        ("x", 2, True, 1)
    ]
    assert await manager.lookup("a") == {}


@pytest.mark.parametrize("name", ["", "another"])
async def test_a_stream_is_of_one_worker(manager: Manager, name: str) -> None:
    x = manager.worker("x")
    await x.report(1, snapshot=True)
    x._name = name
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await x.report(2)
    assert isinstance(from_grpc(refused.value), InvalidRequest)


async def test_stops_at_once_and_ends_open_streams_in_order(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmserve.kvstore.role._STOP_GRACE_SECONDS", 50.0)
    x = manager.worker("x")
    await x.report(1, snapshot=True)
    async with asyncio.timeout(WAIT_SECONDS):
        await manager.role.aclose()
    assert await x.ended() is grpc.StatusCode.OK
