"""What becomes of adapters is logged and counted, and whoever waits for it is woken."""

import asyncio
import logging
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from llmserve.core.errors import NotLeader
from llmserve.metrics.router import RegistrationMetrics
from llmserve.router.adapters.watch import AdapterWatch
from tests.unit.router.adapters.conftest import LORA, MODEL, World, digest_of


class Watched:
    def __init__(self, world: World) -> None:
        self.registry = CollectorRegistry()
        self.watch = AdapterWatch(world.book, RegistrationMetrics(self.registry))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def watched(world: World) -> Watched:
    return Watched(world)


def test_each_state_is_said_once(world: World, watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.start("decode-0")
    number = world.load("sql", "one").number
    for _ in range(3):
        watched.watch.look()
        world.round()
    world.book.unload(MODEL, "sql")
    for _ in range(12):
        watched.watch.look()
        world.round()
    name = f"adapter sql (number {number})"
    assert caplog.messages == [
        f"{name} is fetching: from dir:/sql",
        f"{name} is ready: {digest_of('one')} dir:/sql",
        f"{name} is draining: {digest_of('one')} dir:/sql",
        f"{name} is gone: {digest_of('one')} dir:/sql",
    ]


def test_a_failure_is_a_warning_in_the_worker_s_words(
    world: World, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    world.start("decode-0")
    world.load("sql")
    world.round(rounds=2)
    watched.watch.look()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.endswith("is failed: worker decode-0: no such adapter")


def test_loads_are_counted_by_how_they_ended(world: World, watched: Watched) -> None:
    world.start("decode-0")
    world.load("good", "one")
    world.load("bad")
    world.round(rounds=3)
    watched.watch.look()
    world.load("dropped", "one")
    watched.watch.look()
    world.book.unload(MODEL, "dropped")
    watched.watch.look()
    world.book.unload(MODEL, "good")
    world.book.unload(MODEL, "bad")
    watched.watch.look()
    ended = {
        outcome: watched.value("router_adapter_loads_total", outcome=outcome)
        for outcome in ("ready", "failed", "given_up")
    }
    assert ended == {"ready": 1, "failed": 1, "given_up": 1}


def test_one_that_ended_between_two_looks_is_counted_too(world: World, watched: Watched) -> None:
    world.start("decode-0")
    world.loaded("sql", "one")
    watched.watch.look()
    assert watched.value("router_adapter_loads_total", outcome="ready") == 1


def test_adapters_are_counted_by_state(world: World, watched: Watched) -> None:
    world.start("decode-0")
    world.loaded("sql", "one")
    world.load("chat", "two")
    assert watched.value("router_adapters", state="ready") == 1
    assert watched.value("router_adapters", state="fetching") == 1
    assert watched.value("router_adapters", state="draining") == 0
    assert watched.value("router_adapters", state="gone") is None


def test_tries_that_failed_are_counted(world: World, watched: Watched) -> None:
    world.start("decode-0")
    world.sources.away.add("dir:/sql")
    world.load("sql", "one")
    for _ in range(10):
        world.round()
        watched.watch.look()
    assert watched.value("router_adapter_fetch_failures_total") == world.book.lifecycle.fetch_failures == 3


def test_what_was_brought_near_for_waiting_requests_is_counted(world: World, watched: Watched) -> None:
    world.start("prefill-0", "decode-0", lora=replace(LORA, slots=1))
    for name in ("busy", "a", "b"):
        world.loaded(name, name)
    counts: list[float | None] = []
    for name in ("busy", "a", "b", "a"):
        world.admit(f"r{len(counts)}", digest_of(name))
        watched.watch.look()
        counts.append(watched.value("router_adapter_prefetches_total"))
    assert counts == [0, 2, 4, 4]


async def test_who_waits_is_woken_by_the_decision(world: World, watched: Watched) -> None:
    world.start("decode-0")
    registration = world.load("sql", "one")
    watched.watch.look()
    waiting = asyncio.ensure_future(watched.watch.calls.until(lambda: not registration.pending))
    await asyncio.sleep(0)
    world.heartbeat("decode-0")
    watched.watch.look()
    await asyncio.sleep(0)
    assert not waiting.done()
    world.round(rounds=2)
    watched.watch.look()
    await waiting


async def test_what_holds_already_is_not_waited_for(world: World, watched: Watched) -> None:
    watched.watch.calls.close()
    await watched.watch.calls.until(lambda: True)


async def test_the_end_of_a_term_ends_the_waiting(world: World, watched: Watched) -> None:
    waiting = asyncio.ensure_future(watched.watch.calls.until(lambda: False))
    await asyncio.sleep(0)
    watched.watch.calls.close()
    with pytest.raises(NotLeader):
        await waiting
    with pytest.raises(NotLeader):
        await watched.watch.calls.until(lambda: False)


async def test_who_gives_up_is_forgotten(world: World, watched: Watched) -> None:
    waiting = asyncio.ensure_future(watched.watch.calls.until(lambda: False))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    world.start("decode-0")
    world.load("sql", "one")
    watched.watch.look()
