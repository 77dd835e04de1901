"""Adapters through the whole worker: a router's orders, apiservers' requests, a simulated engine with few
slots, and a store whose files come and go."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llmserve.core.adapters import AdapterOrder, AdapterTier, LoraShape
from llmserve.core.errors import EngineDead, InvalidRequest, Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.core.request import FinishReason
from tests.integration.test_worker_service import (
    ROUTER,
    SOON,
    Cluster,
    FakeRouter,
    MortalEngine,
    Stream,
    is_empty,
)
from tests.support.adapter_pool import FakeStore

SLOTS = 4


def order(number: int, name: str, tier: AdapterTier = AdapterTier.DISK) -> AdapterOrder:
    return AdapterOrder(number, f"dir:/{name}", tier=tier)


class Site:
    """One worker, its router, and a connection to it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.router, self.store, self._cluster = FakeRouter(), FakeStore(folder), cluster

    async def start(self, **options: Any) -> "Site":
        _, port = await self._cluster.serve(ROUTER[0], self.router, ROUTER[1])
        self.worker, self.channel = await self._cluster.worker(
            lora=LoraShape(SLOTS, 16),
            routers=(f"127.0.0.1:{port}",),
            open_adapters=lambda shape: self.store,
            **options,
        )
        return self

    @property
    def engine(self) -> MortalEngine:
        assert isinstance(self.worker._engine, MortalEngine)
        return self.worker._engine

    async def holds(self, *names: str) -> None:
        self.router.order(*(order(number, name) for number, name in enumerate(names, 1)))
        await self.router.until(
            lambda: {report.digest for report in self.router.reports.values()} == {*names}
        )

    def legs(self) -> dict[AdapterDigest, int]:
        assert self.worker._adapters is not None
        return self.worker._adapters.pool.legs()

    async def is_empty(self) -> None:
        async with asyncio.timeout(SOON):
            while self.legs():  # noqa: ASYNC110 - another process's state, as far as the test knows
                await asyncio.sleep(0.01)
        await is_empty(self.channel)

    def count(self, name: str, **labels: str) -> float:
        return self._cluster.registry.get_sample_value(f"worker_adapter_{name}", labels) or 0.0


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(stack)


@pytest.fixture
async def site(cluster: Cluster, tmp_path: Path) -> Site:
    return await Site(cluster, tmp_path).start()


# -- requests


async def test_requests_run_on_their_adapters(site: Site) -> None:
    await site.holds("a", "b")
    stream = Stream(site.channel)
    for name in ("a", "b", ""):
        await stream.generate(f"r{name}", adapter=name)
    answers = set()
    for name in ("a", "b", ""):
        assert (await stream.last(f"r{name}")).finish_reason is FinishReason.LENGTH
        answers.add(tuple(stream.tokens(f"r{name}")))
    assert len(answers) == 3
    assert [output.adapter_load is not None for output in stream.of("ra")][:2] == [True, False]
    assert stream.of("r")[0].adapter_load is None
    await site.is_empty()
    assert site.count("slots") == SLOTS


async def test_requests_of_the_model_pass_those_that_wait(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = hold_loads(site, monkeypatch)
    await site.holds("a")
    stream = Stream(site.channel)
    await stream.generate("r", adapter="a")
    await stream.generate("base")
    assert (await stream.last("base")).finish_reason is FinishReason.LENGTH
    assert not stream.of("r")
    assert site.worker._service is not None
    assert site.worker._service.running_requests == 1, "what waits is waited for at a drain"
    gate.set()
    await stream.last("r")


def hold_loads(site: Site, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The engine loads adapters only once this is set."""
    gate, load = asyncio.Event(), site.engine.load_adapter

    async def load_late(digest: AdapterDigest, path: Path) -> None:
        await gate.wait()
        await load(digest, path)

    monkeypatch.setattr(site.engine, "load_adapter", load_late)
    return gate


async def test_a_version_without_an_order_is_refused(site: Site) -> None:
    stream = Stream(site.channel)
    await stream.generate("r", adapter="a")
    assert (await stream.last("r")).error == "AdapterUnavailable: this worker does not hold adapter a"
    await stream.generate("r")
    while stream.of("r")[-1].finish_reason is not FinishReason.LENGTH:
        assert await stream.read()


async def test_a_worker_without_slots_refuses_all(cluster: Cluster) -> None:
    router = FakeRouter()
    _, port = await cluster.serve(ROUTER[0], router, ROUTER[1])
    _, channel = await cluster.worker(routers=(f"127.0.0.1:{port}",))
    router.order(order(1, "a"))
    message = "the engine of this worker runs no adapters"
    await router.until(lambda: 1 in router.reports and router.reports[1].message == message)
    stream = Stream(channel)
    await stream.generate("r", adapter="a")
    assert (await stream.last("r")).error.startswith("AdapterUnavailable: ")


async def test_aborts_and_broken_streams_end_what_waits(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_loads(site, monkeypatch)
    await site.holds("a")
    one, other = Stream(site.channel), Stream(site.channel)
    await one.generate("r", adapter="a")
    await one.generate("s", adapter="a")
    await other.generate("t", adapter="a")
    await one.generate("base")
    await one.last("base")
    assert sum(site.legs().values()) >= 2
    await one.abort("r")
    other.call.cancel()
    async with asyncio.timeout(SOON):
        while site.legs() != {"a": 1}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    one.call.cancel()
    await site.is_empty()


async def test_a_stopping_worker_waits_for_them_and_then_gives_them_up(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await Site(cluster, tmp_path).start(drain_seconds=0.3)
    hold_loads(site, monkeypatch)
    await site.holds("a")
    stream = Stream(site.channel)
    await stream.generate("r", adapter="a")
    await stream.generate("base")
    await stream.last("base")
    began = asyncio.get_running_loop().time()
    await site.worker.aclose()
    assert asyncio.get_running_loop().time() - began >= 0.3
    assert (await stream.last("r")).error == "WorkerDraining: the worker is stopping"
    assert site.store.closed
    assert not site.store.held


async def test_an_engine_that_dies_while_it_loads_ends_all(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_loads(site, monkeypatch)
    await site.holds("a")
    stream = Stream(site.channel)
    await stream.generate("r", adapter="a")
    await stream.generate("base", max_tokens=4000)
    await stream.first("base")
    site.engine.die()
    for name in ("r", "base"):
        assert (await stream.last(name)).error.startswith("EngineDead: ")
    with pytest.raises(EngineDead):
        await site.worker.wait()
    assert not await stream.read(), "the stream ends"


async def test_a_load_that_fails_refuses_its_requests_only(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = site.engine.load_adapter

    async def fail_a(digest: AdapterDigest, path: Path) -> None:
        if digest == "a":
            raise InvalidRequest("it is damaged")
        await load(digest, path)

    monkeypatch.setattr(site.engine, "load_adapter", fail_a)
    await site.holds("a", "b")
    stream = Stream(site.channel)
    await stream.generate("r", adapter="a")
    await stream.generate("s", adapter="b")
    assert (await stream.last("r")).error.startswith("AdapterUnavailable: adapter a cannot be loaded")
    assert (await stream.last("s")).finish_reason is FinishReason.LENGTH
    await site.router.until(lambda: site.router.reports[1].error == "AdapterUnavailable")
    await site.is_empty()


async def test_files_that_vanish_are_fetched_again(site: Site) -> None:
    await site.holds("a", *(f"n{number}" for number in range(SLOTS)))
    stream = Stream(site.channel)
    for number in range(SLOTS):
        await stream.generate(f"r{number}", adapter=f"n{number}")
        await stream.last(f"r{number}")
    site.store.vanish("a")
    await stream.generate("r", adapter="a")
    assert (await stream.last("r")).finish_reason is FinishReason.LENGTH
    assert site.store.fetched.count((AdapterDigest("a"), AdapterTier.DISK)) == 2


# -- the router


async def test_reports_do_not_wait_for_the_next_heartbeat(cluster: Cluster, tmp_path: Path) -> None:
    site = Site(cluster, tmp_path)
    site.router = FakeRouter(heartbeat_seconds=30.0)
    site.router.order(order(1, "a"))
    await site.start()
    await site.router.until(lambda: 1 in site.router.reports and site.router.reports[1].digest == "a")
    await site.router.until(lambda: site.router.reports[1].tier is AdapterTier.DEVICE)
    assert site.router.log.count("heartbeat") <= 4


async def test_reports_travel_only_when_they_changed_and_all_to_a_router_that_forgot(site: Site) -> None:
    await site.holds("a")
    await site.router.until(lambda: site.router.reports[1].tier is AdapterTier.DEVICE)
    sent, beats = site.router.report_messages, site.router.log.count("heartbeat")
    await site.router.until(lambda: site.router.log.count("heartbeat") > beats + 3)
    assert site.router.report_messages == sent
    site.router.known.clear()
    site.router.reports.clear()
    await site.router.until(lambda: 1 in site.router.reports)


async def test_an_idle_worker_lets_go(site: Site) -> None:
    await site.holds("a", "b")
    await site.router.until(lambda: site.router.reports[1].tier is AdapterTier.DEVICE)
    await site.holds()
    assert site.count("used_slots") == 0
    stream = Stream(site.channel)
    await stream.generate("r", adapter="a")
    assert (await stream.last("r")).error.startswith("AdapterUnavailable: ")


async def test_what_runs_ends_before_its_version_is_let_go(site: Site) -> None:
    await site.holds("a")
    stream = Stream(site.channel)
    await stream.generate("r", adapter="a", max_tokens=200)
    await stream.first("r")
    site.router.order()
    await site.router.until(lambda: site.router.obeyed)
    await stream.generate("s", adapter="a")
    assert (await stream.last("s")).error.startswith("AdapterUnavailable: ")
    assert (await stream.last("r")).finish_reason is FinishReason.LENGTH
    assert len(stream.tokens("r")) == 200
    await site.router.until(lambda: not site.router.reports)


async def test_a_store_that_was_away_is_asked_again_when_the_router_says_so(site: Site) -> None:
    site.store.errors["a"] = Unavailable("no answer from the store")
    site.router.order(order(1, "a"))
    await site.router.until(lambda: bool(site.router.reports) and bool(site.router.reports[1].error))
    assert site.router.reports[1].message == "no answer from the store"
    site.store.errors.clear()
    site.router.order()
    await site.router.until(lambda: not site.router.reports)
    await site.holds("a")


async def test_a_worker_that_starts_again_takes_its_versions_from_the_disk(
    cluster: Cluster, tmp_path: Path
) -> None:
    first = await Site(cluster, tmp_path).start()
    await first.holds("a")
    await first.worker.aclose()
    cluster.registry = CollectorRegistry()
    second = Site(cluster, tmp_path)
    second.store.places = {place for place in first.store.places if place[1] is AdapterTier.DISK}
    await second.start()
    await second.holds("a")
    assert ("a", AdapterTier.DISK) not in second.store.fetched


# -- many at once


async def test_a_hundred_versions_over_four_slots(cluster: Cluster, tmp_path: Path) -> None:
    """A random walk: 400 requests of 100 versions, of which a fifth are aborted, over four slots."""
    rng = random.Random(15)
    site = await Site(cluster, tmp_path).start()
    names = [f"v{number}" for number in range(100)]
    await site.holds(*names)
    walk = Walk(site, rng)
    await asyncio.gather(*(walk.client(Stream(site.channel), names, client) for client in range(8)))
    assert walk.ended + walk.aborted == 400
    assert walk.aborted > 20
    await site.is_empty()
    assert site.store.held.issubset({(AdapterDigest(name), AdapterTier.DISK) for name in names})
    assert len(site.store.held) <= SLOTS
    assert site.count("evictions_total") >= 100 - SLOTS


class Walk:
    """Eight clients, each with up to four requests at once. What an answer must be depends on the adapter
    alone, and no request waits for longer than SOON (Stream.read)."""

    def __init__(self, site: Site, rng: random.Random) -> None:
        self._site, self._rng = site, rng
        self._answers: dict[str, tuple[int, ...]] = {}
        self.ended = self.aborted = 0

    async def client(self, stream: Stream, names: list[str], client: int) -> None:
        running: dict[str, str] = {}
        for number in range(50):
            name, adapter = f"c{client}-{number}", self._rng.choice(names)
            running[name] = adapter
            await stream.generate(name, adapter=adapter, max_tokens=self._rng.randint(3, 12))
            if self._rng.random() < 0.2:
                await asyncio.sleep(self._rng.random() * 0.02)
                await stream.abort(name)
                del running[name]
                self.aborted += 1
            self._check()
            while len(running) >= 4:
                await self._take(stream, running)
        while running:
            await self._take(stream, running)

    async def _take(self, stream: Stream, running: dict[str, str]) -> None:
        name = next(iter(running))
        assert (await stream.last(name)).finish_reason is FinishReason.LENGTH
        assert sum(output.finish_reason is not None for output in stream.of(name)) == 1
        start = tuple(stream.tokens(name)[:3])
        assert self._answers.setdefault(running.pop(name), start) == start
        self.ended += 1

    def _check(self) -> None:
        """No more versions run than there are slots."""
        running = {s.adapter for s in self._site.engine._scheduler._running if s.adapter}
        assert len(running) <= SLOTS
        assert running <= self._site.engine._adapters._loaded
