"""A router's terms: what it has from the manifest when the next one begins."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from llmserve.config.changes import compare
from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.core.clock import LeaseClock, SystemClock
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.router import RouterMetrics
from llmserve.router.adapters.book import AdapterBook
from llmserve.router.adapters.registration import AdapterWish
from llmserve.router.kv_watch import KvWatch
from llmserve.router.leader.election import ALONE, LeaderStatus, TermTimes
from llmserve.router.leader.state import MemoryState, StateKey, Term
from llmserve.router.leader.term import LeaderTerm, Manifests, TermParts
from llmserve.router.prefix.index import PrefixIndex
from llmserve.router.settings import RouterSettings


class _Granted:
    """A mandate."""

    def check(self) -> None: ...

    def status(self) -> LeaderStatus:
        return LeaderStatus(leads=True, leader="r:1")

    def promise(self, leader: str, epoch: int, seconds: float) -> bool:
        return False


class _Router:
    """One of two: the file is changed by the other's reloads, too."""

    def __init__(self, state: MemoryState | None = None, times: TermTimes = ALONE) -> None:
        self.file = _manifest("info")
        index = PrefixIndex()
        metrics = RouterMetrics(CollectorRegistry())
        self.state = state or MemoryState(LeaseClock())
        parts = TermParts(
            replace(RouterSettings.of(self.file), terms=times),
            SystemClock(),
            self.state,
            metrics,
            index,
            KvWatch((), index),
        )
        manifests = Manifests(self.file, lambda: self.file)
        self._term = LeaderTerm(parts, TaskOwner("test"), self._changed, manifests)
        self._term.open(_Granted())
        self._terms = 0

    async def _changed(self, leads: bool) -> None: ...

    async def lead(self) -> AdapterBook:
        """Begins a term that the state knows. Returns its adapters."""
        self.leads = await self.state.campaign("r:1", 60.0)
        assert isinstance(self.leads, Term)
        await self._term.begin(self.leads)
        return self._term.controller.adapters

    async def resign(self) -> None:
        await self.end()
        assert isinstance(self.leads, Term)
        await self.state.resign(self.leads)

    def deciding(self) -> AbstractContextManager[object]:
        return self._term.services.event_loop.deciding()

    async def begin(self) -> str:
        """Returns the level that its workers are told in the new term."""
        self._terms += 1
        await self._term.begin(Term(self._terms, "r:1"))
        return self._term.services.live.settings.log_level

    async def end(self) -> None:
        await self._term.end()

    def reload(self, manifest: Manifest) -> None:
        changes = compare(self.file, self.file, manifest)
        self.file = manifest
        self._term.services.live.apply(manifest, changes)


class TestAdapters:
    """What a leader has decided about adapters is there in the next term."""

    async def test_another_router_goes_on(self) -> None:
        first = _Router()
        number = (await first.lead()).load("b", AdapterWish("sql", "dir:/sql")).number
        await first.resign()
        second = _Router(first.state)
        (registration,) = await second.lead()
        assert (registration.number, registration.wish.name) == (number, "sql")
        assert await second.state.load() is None, "a router that is alone schedules anew"
        await second.end()

    async def test_what_was_unloaded_last_does_not_come_back(self) -> None:
        """Nothing is left to save then, and that is saved, too."""
        first = _Router()
        (await first.lead()).load("b", AdapterWish("sql", "dir:/sql"))
        await first.resign()
        second = _Router(first.state)
        (await second.lead()).unload("b", "sql")
        await second.resign()
        assert list(await _Router(first.state).lead()) == []

    async def test_the_numbers_are_larger_in_each_term_though_nothing_was_saved(self) -> None:
        numbers = []
        for _ in range(2):
            router = _Router()
            numbers.append((await router.lead()).load("b", AdapterWish("sql", "dir:/sql")).number)
            await asyncio.sleep(0.005)  # the numbers of terms are times
        assert numbers[0] < numbers[1]

    async def test_what_is_no_snapshot_is_said_and_left(self, caplog: pytest.LogCaptureFixture) -> None:
        state = MemoryState(LeaseClock())
        term = await state.campaign("r:0", 60.0)
        assert isinstance(term, Term)
        await state.save(term, "{", StateKey.ADAPTERS)
        await state.resign(term)
        router = _Router(state)
        with caplog.at_level(logging.WARNING):
            assert list(await router.lead()) == []
        assert "what the last leader saved of its adapters is not used" in caplog.text
        await router.end()

    async def test_a_state_that_was_emptied_is_filled_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llmserve.router.leader.term._ALL_AGAIN_SECONDS", 0.003)
        state = _Forgetful(LeaseClock())
        router = _Router(state, TermTimes(save_seconds=0.001))
        (await router.lead()).load("b", AdapterWish("sql", "dir:/sql"))
        for _ in range(2):
            await _adapters_are_saved(state)
            state.forget()
        await router.end()

    async def test_what_is_decided_is_saved_soon(self) -> None:
        router = _Router(times=TermTimes(save_seconds=0.001))
        book = await router.lead()
        await asyncio.sleep(0.01)  # it waits for a decision now
        with router.deciding():
            book.load("b", AdapterWish("sql", "dir:/sql"))
        await _adapters_are_saved(router.state)
        await router.end()


async def _adapters_are_saved(state: MemoryState) -> None:
    async with asyncio.timeout(30):
        while await state.load(StateKey.ADAPTERS) is None:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)


class _Forgetful(MemoryState):
    def forget(self) -> None:
        self._saved.clear()


def _manifest(level: str) -> Manifest:
    text = (
        f"kind: LLMServe\nmodels: {{primary: {{source: 'hub:a/b'}}}}\nobservability: {{log_level: {level}}}\n"
    )
    return parse_manifest(text, "m.yaml")


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    """As an environment variable has set it at the start."""
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    yield
    logging.getLogger().setLevel(before)


async def test_without_a_reload_each_process_keeps_its_log_level() -> None:
    router = _Router()
    for _ in range(2):
        assert await router.begin() == ""
        await router.end()
    assert logging.getLogger().level == logging.ERROR


async def test_a_log_level_that_another_leader_has_reloaded_holds() -> None:
    router = _Router()
    router.file = _manifest("debug")
    assert await router.begin() == "debug"
    assert logging.getLogger().level == logging.DEBUG
    await router.end()
    assert await router.begin() == "debug", "and in the term after that"
    await router.end()


async def test_a_log_level_that_another_leader_has_taken_back_is_taken_back() -> None:
    router = _Router()
    await router.begin()
    router.reload(_manifest("debug"))
    await router.end()
    router.file = _manifest("info")
    assert await router.begin() == "info"
    assert logging.getLogger().level == logging.INFO
    await router.end()
