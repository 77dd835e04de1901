"""A router names blocks of adapters to KV managers: to prefetch them, and to drop what an adapter has left,
however often it must ask."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmserve.core.ids import BlockHash, TenantId, WorkerId
from llmserve.kvstore.blocks import hash_in, label_in
from llmserve.router.events import Prefetch
from llmserve.router.kv_watch import KvWatch
from llmserve.router.prefix.index import PrefixIndex, Stretch
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from tests.integration.test_prefix_index import WAIT_SECONDS, Manager, until
from tests.integration.test_router_service import worker
from tests.unit.kvstore.store.conftest import chain
from tests.unit.kvstore.store.dropping_process import GONE, of_adapter

KEYS = of_adapter("a", GONE)
BASE = chain("base", 2)


@pytest.fixture
async def managers(tmp_path: Path) -> AsyncIterator[list[Manager]]:
    """Each has blocks of the adapter and of the model itself."""
    both = [Manager(tmp_path / name, name) for name in ("kvmanager-0", "kvmanager-1")]
    for manager in both:
        manager.directory.mkdir()
        await manager.start()
        await manager.store(KEYS)
        await manager.store(BASE)
    yield both
    for manager in both:
        await manager.stop()


@pytest.fixture
async def watch(managers: list[Manager], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KvWatch]:
    monkeypatch.setattr("llmserve.router.kv_watch._DROP_AGAIN_SECONDS", (0.02, 0.1))
    watch = KvWatch([manager.address for manager in managers], PrefixIndex())
    await watch.start()
    yield watch
    await watch.aclose()


def left(manager: Manager) -> list[BlockHash]:
    held = [node.key for tier in manager.world.tiers for node in tier.index.held()]
    return [key for key in held if label_in(key)]


async def test_all_of_them_drop_it(managers: list[Manager], watch: KvWatch) -> None:
    dropped = asyncio.Event()
    watch.drop_adapter(GONE, dropped.set)
    async with asyncio.timeout(WAIT_SECONDS):
        await dropped.wait()
    for manager in managers:
        assert left(manager) == []
        assert await manager.world.loaded(BASE) == [0, 1]


async def test_one_that_is_away_is_asked_when_it_is_back(managers: list[Manager], watch: KvWatch) -> None:
    """What it had on its disk is there again."""
    dropped = asyncio.Event()
    await managers[1].stop()
    watch.drop_adapter(GONE, dropped.set)
    await until(lambda: not left(managers[0]))
    assert not dropped.is_set()
    await managers[1].start()
    async with asyncio.timeout(WAIT_SECONDS):
        await dropped.wait()
    assert left(managers[1]) == []


async def test_it_is_asked_again_while_somebody_reads(managers: list[Manager], watch: KvWatch) -> None:
    dropped = asyncio.Event()
    world = managers[0].world
    lease = (await world.prepare(KEYS, store=False)).lease_id
    watch.drop_adapter(GONE, dropped.set)
    await until(lambda: len(left(managers[0])) == len(KEYS))  # those on the disk are gone
    assert not dropped.is_set()
    world.store.release(lease)
    async with asyncio.timeout(WAIT_SECONDS):
        await dropped.wait()
    assert left(managers[0]) == []


async def test_an_adapter_that_is_loaded_again_is_kept(managers: list[Manager], watch: KvWatch) -> None:
    dropped = asyncio.Event()
    await managers[1].stop()
    watch.drop_adapter(GONE, dropped.set)
    await until(lambda: not left(managers[0]))
    watch.keep_adapter(GONE)
    await managers[1].start()
    await managers[0].store(KEYS)
    await until(lambda: not watch.away())
    await asyncio.sleep(0.2)  # longer than it would take to be asked again
    assert left(managers[0])
    assert left(managers[1])
    assert not dropped.is_set()
    watch.keep_adapter(GONE)


async def test_blocks_of_an_adapter_are_prefetched_under_their_keys(
    managers: list[Manager], watch: KvWatch
) -> None:
    manager = managers[0]
    manager.world.forget_dram(KEYS)
    await manager.attach("prefill-0")
    hashes = [hash_in(key) for key in KEYS]
    stretches = [Stretch(manager.address, 0, len(KEYS))]
    watch.prefetch(Prefetch(WorkerId("prefill-0"), TenantId("default"), hashes, stretches, 10.0, GONE))
    await until(lambda: manager.world.store.dram.leading(KEYS) == len(KEYS))


async def _obey(stub: router_pb2_grpc.RouterStub) -> None:
    """Heartbeats of a worker that at once has what it is ordered to have."""
    reports, version = router_pb2.AdapterReports(), 0
    while True:
        request = router_pb2.HeartbeatRequest(
            worker_id="decode-0", epoch=1, adapters=reports, adapters_version=version
        )
        answer = await stub.Heartbeat(request, timeout=WAIT_SECONDS)
        if answer.HasField("adapters"):
            version = answer.adapters_version
            held = [
                router_pb2.AdapterReport(number=order.number, digest=GONE, tier=router_pb2.ADAPTER_TIER_DISK)
                for order in answer.adapters.orders
            ]
            reports = router_pb2.AdapterReports(reports=held)
        await asyncio.sleep(0.02)


async def test_when_an_adapter_is_unloaded_the_router_has_them_drop_it(
    managers: list[Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmserve.router.adapters.lifecycle.LINGER_SECONDS", 0.1)
    settings = RouterSettings(allowed_sources=("dir:/adapters",))
    router = RouterRole(settings, listen="127.0.0.1:0", kvmanagers=[m.address for m in managers])
    await router.start()
    info = worker("decode-0")
    info.lora.slots = 4
    async with open_channel(f"127.0.0.1:{router.port}") as channel:
        stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
        await stub.Register(router_pb2.RegisterRequest(worker=info), timeout=WAIT_SECONDS)
        obeying = asyncio.create_task(_obey(stub))
        load = router_pb2.LoadAdapterRequest(name="a", source="dir:/adapters/a")
        loaded = await stub.LoadAdapter(load, timeout=WAIT_SECONDS)
        assert loaded.adapter.adapter.digest == GONE
        assert all(map(left, managers))
        unload = router_pb2.UnloadAdapterRequest(name="a", wait=True)
        await stub.UnloadAdapter(unload, timeout=WAIT_SECONDS)
        await until(lambda: not any(map(left, managers)))
        obeying.cancel()
    await router.aclose()
