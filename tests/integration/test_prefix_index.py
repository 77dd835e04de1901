"""The prefix index over real gRPC: KV managers with a real store (DRAM and NVMe), followed by a router."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmserve.core.ids import BlockHash, WorkerId
from llmserve.kvstore.directory.directory import KvTier
from llmserve.kvstore.role import KVManagerRole
from llmserve.kvstore.store.build import BuiltStore
from llmserve.router.kv_watch import KvWatch
from llmserve.router.prefix.index import HashedPrompt, PrefixIndex
from llmserve.router.prefix.match import TierRun
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc, router_pb2, router_pb2_grpc
from tests.integration.test_kvmanager_service import Worker
from tests.integration.test_router_service import Apiserver, Request, worker
from tests.unit.kvstore.store.conftest import PART_BYTES, World, chain
from tests.unit.kvstore.store.storing_process import built

WAIT_SECONDS = 30.0
BLOCKS = chain("a", 4)
BLOCK_TOKENS = 16  # as the workers of test_router_service say


@dataclass
class Manager:
    """A KV manager that can die and come back with what it had on disk."""

    directory: Path
    name: str
    address: str = "127.0.0.1:0"
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        store: BuiltStore = built(self.directory)
        self.world = World(store.store, store.arena.view)
        role = KVManagerRole(listen=self.address, name=self.name, store=store)
        self.stack.push_async_callback(role.aclose)
        await role.start()
        self.address = f"127.0.0.1:{role.port}"
        channel = await self.stack.enter_async_context(open_channel(self.address))
        self.stub = kvmanager_pb2_grpc.KVManagerStub(channel)  # type: ignore[no-untyped-call]

    async def stop(self) -> None:
        await self.stack.aclose()

    async def store(self, blocks: list[BlockHash], *, below_only: bool = False) -> None:
        await self.world.seen(blocks)
        await self.world.drained()
        if below_only:
            self.world.forget_dram(blocks)

    async def attach(self, name: str) -> None:
        request = kvmanager_pb2.AttachStoreRequest(worker_id=name, epoch=1, part_bytes=[PART_BYTES])
        await self.stub.AttachStore(request, timeout=WAIT_SECONDS)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)


Follow = Callable[..., Awaitable[PrefixIndex]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def managers(stack: AsyncExitStack, tmp_path: Path) -> list[Manager]:
    both = [Manager(tmp_path / name, name) for name in ("kvmanager-0", "kvmanager-1")]
    for manager in both:
        manager.directory.mkdir()
        await manager.start()
        stack.push_async_callback(manager.stop)
    return both


@pytest.fixture
async def follow(stack: AsyncExitStack) -> Follow:
    async def start(*managers: Manager) -> PrefixIndex:
        index = PrefixIndex()
        watch = KvWatch([manager.address for manager in managers], index)
        stack.push_async_callback(watch.aclose)
        await watch.start()
        await until(lambda: len(index.followed) == len(managers))
        return index

    return start


def tiers(index: PrefixIndex, blocks: list[BlockHash] = BLOCKS) -> tuple[TierRun, ...]:
    return index.match(HashedPrompt(blocks, BLOCK_TOKENS)).tiers


async def test_devices_and_tiers_are_followed_as_they_change(managers: list[Manager], follow: Follow) -> None:
    manager = managers[0]
    await manager.store(chain("before", 2))
    index = await follow(manager)
    await until(lambda: tiers(index, chain("before", 2)) == (TierRun(KvTier.DRAM, 2),))
    x = Worker(manager.stub, "x")
    await x.report(1, "abc", snapshot=True)
    letters = [BlockHash(letter.encode()) for letter in "abc"]
    await until(lambda: index.match(HashedPrompt(letters, 16)).device == {"x": 3})
    await x.report(2, removed="c")
    await until(lambda: index.match(HashedPrompt(letters, 16)).device == {"x": 2})
    assert index.device_blocks(WorkerId("x")) == 2
    await manager.store(BLOCKS)
    await until(lambda: tiers(index) == (TierRun(KvTier.DRAM, 4),))
    manager.world.forget_dram(BLOCKS)
    await until(lambda: tiers(index) == (TierRun(KvTier.NVME, 4),))
    x.vanish()


async def test_after_a_restart_what_the_disk_has_is_known_again(
    managers: list[Manager], follow: Follow
) -> None:
    manager = managers[0]
    await manager.store(BLOCKS)
    index = await follow(manager)
    await until(lambda: bool(tiers(index)))
    await manager.stop()
    await until(lambda: not index.followed)
    assert tiers(index) == ()
    await manager.start()
    await until(lambda: tiers(index) == (TierRun(KvTier.NVME, 4),))


async def test_of_two_that_one_is_away_costs_its_part_only(managers: list[Manager], follow: Follow) -> None:
    await managers[0].store(BLOCKS)
    await managers[1].store(chain("b", 3))
    index = await follow(*managers)
    await until(lambda: len(tiers(index)) == len(tiers(index, chain("b", 3))) == 1)
    await managers[1].stop()
    await until(lambda: len(index.followed) == 1)
    assert (tiers(index), tiers(index, chain("b", 3))) == ((TierRun(KvTier.DRAM, 4),), ())


async def test_a_report_that_is_missing_begins_it_anew(managers: list[Manager], follow: Follow) -> None:
    manager = managers[0]
    await manager.store(BLOCKS)
    index = await follow(manager)
    await until(lambda: bool(tiers(index)))
    broken = index._replicas[manager.address]
    for held in broken._held.values():
        held.sequence = 99  # as if it had been told more than it was
    await manager.store(chain("c", 1))
    await until(lambda: index._replicas.get(manager.address) not in (None, broken))
    await until(lambda: len(tiers(index, chain("c", 1))) == 1)
    assert tiers(index) == (TierRun(KvTier.DRAM, 4),)


@dataclass
class Routed:
    stub: router_pb2_grpc.RouterStub
    apiserver: Apiserver

    async def admit(self, name: str) -> None:
        admit = router_pb2.Admit(
            request_id=name,
            tenant="t",
            model="m",
            prompt_tokens=BLOCK_TOKENS * len(BLOCKS) + 1,
            block_hashes=BLOCKS,
            block_tokens=BLOCK_TOKENS,
        )
        await self.apiserver.say(Request(admit=admit))

    async def status(self) -> router_pb2.GetClusterStatusResponse:
        request = router_pb2.GetClusterStatusRequest()
        status: router_pb2.GetClusterStatusResponse = await self.stub.GetClusterStatus(
            request, timeout=WAIT_SECONDS
        )
        return status


async def routed(stack: AsyncExitStack, manager: Manager, *, prefetch: bool) -> Routed:
    """One prefill and one decode worker, each with room for one request."""
    router = RouterRole(
        RouterSettings(prefetch_on_prefix=prefetch), listen="127.0.0.1:0", kvmanagers=[manager.address]
    )
    stack.push_async_callback(router.aclose)
    await router.start()
    channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{router.port}"))
    stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
    for name in ("prefill-0", "decode-0"):
        await stub.Register(router_pb2.RegisterRequest(worker=worker(name)), timeout=WAIT_SECONDS)
        await manager.attach(name)
    return Routed(stub, await Apiserver(stub, "api").hello())


async def knows(routed: Routed, blocks: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while (await routed.status()).prefix_index.blocks < blocks:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("prefetch", [True, False])
async def test_what_a_waiting_request_needs_is_in_dram_before_it_runs(
    stack: AsyncExitStack, managers: list[Manager], prefetch: bool
) -> None:
    manager = managers[0]
    await manager.store(BLOCKS, below_only=True)
    router = await routed(stack, manager, prefetch=prefetch)
    await knows(router, 4)
    await router.admit("runs")
    assert (await router.apiserver.placed()).placement.predicted_cached_tokens == 4 * BLOCK_TOKENS
    dram = manager.world.store.dram
    assert dram.leading(BLOCKS) == 0  # it is brought up for those that wait
    await router.admit("waits")
    if prefetch:
        await until(lambda: dram.leading(BLOCKS) == 4)
        assert (dram.open_leases, dram.totals.hit_blocks) == (0, 0)
    else:
        await asyncio.sleep(0.3)
        assert dram.leading(BLOCKS) == 0
    await router.apiserver.done("runs")
    assert (await router.apiserver.placed()).request_id == "waits"


async def test_the_router_serves_while_its_kv_manager_is_away(
    stack: AsyncExitStack, managers: list[Manager]
) -> None:
    manager = managers[0]
    await manager.store(BLOCKS)
    router = await routed(stack, manager, prefetch=True)
    await knows(router, 4)
    assert list((await router.status()).prefix_index.followed) == [manager.address]
    await manager.stop()
    async with asyncio.timeout(WAIT_SECONDS):
        while not (index := (await router.status()).prefix_index).away:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (list(index.away), index.blocks, index.proof) == ([manager.address], 0, "unproven")
    await router.admit("a")
    assert (await router.apiserver.placed()).placement.predicted_cached_tokens == 0
