"""Random events in random order: no request is without its version, and everything ends in order."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.adapters import AdapterState
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import NotFound
from llmserve.core.ids import RequestId
from llmserve.router.adapters.registration import AdapterWish
from llmserve.router.workers.worker import WorkerState
from tests.unit.router.adapters.conftest import MODEL, World

NAMES, WORKERS = ("sql", "chat"), ("prefill-0", "decode-0", "decode-1")
SOURCES = ("dir:/sql", "dir:/chat", "dir:/other")
EVENTS = (
    *(
        "load",
        "load",
        "unload",
        "keep",
        "declare",
        "start",
        "stop",
        "heartbeat",
        "heartbeat",
        "round",
        "round",
    ),
    *(
        "admit",
        "admit",
        "late",
        "done",
        "tick",
        "away",
        "back",
        "wrong",
        "right",
        "other",
        "take over",
        "silence",
    ),
)


class Play:
    """Applies one drawn event after another, and checks the book after each."""

    def __init__(self) -> None:
        self.world = World(VirtualClock(1000.0))
        self.world.sources.content = {source: source for source in SOURCES}
        self.highest = 0
        self.seen = self.world.names()  # as an apiserver knew them a moment ago
        self.requests = 0

    def event(self, kind: str, number: int) -> None:
        world, name, source = self.world, NAMES[number % 2], SOURCES[number % 3]
        worker, names = WORKERS[number % 3], self.world.names()
        match kind:
            case "load":
                world.book.load(MODEL, AdapterWish(name, source, implicit=number > 5))
            case "unload":
                self._if_known(lambda: world.book.unload(MODEL, name))
            case "keep":
                self._if_known(lambda: world.book.find(MODEL, name))
            case "declare":
                wishes = [AdapterWish(name, source), AdapterWish("mine", SOURCES[0])][: number % 3]
                world.declared = tuple(wishes)
                world.book.declare(MODEL, wishes)
            case "start":
                world.start(worker)
            case "stop":
                if worker in world.workers:
                    world.stop(worker)
            case "heartbeat":
                if worker in world.workers:
                    self._heartbeat(worker)
            case "round":
                self.rounds(1)
            case "silence":
                self.rounds(4, without=worker)
            case "admit" if names:
                self._admit(list(names.values())[number % len(names)])
            case "late" if self.seen:
                self._admit(list(self.seen.values())[number % len(self.seen)])
            case "done" if world.requests:
                world.done(list(world.requests)[number % len(world.requests)])
            case "tick":
                self._pass_time(number / 4)
            case "away":
                world.sources.away.add(source)
            case "back":
                world.sources.away.discard(source)
            case "wrong":
                world.sources.wrong.add(source)
            case "right":
                world.sources.wrong.discard(source)
            case "other":
                world.sources.content[source] = f"contents {number}"
            case "take over":
                world.begin_term(world.book.snapshot())
        if kind not in ("load", "unload", "round", "heartbeat"):
            self.seen = names
        self.check()

    def rounds(self, count: int, without: str = "") -> None:
        for _ in range(count):
            self._pass_time(1.0)
            for worker in WORKERS:
                if worker in self.world.workers and worker != without:
                    self._heartbeat(worker)

    def _pass_time(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.world.controller.tick()

    def _heartbeat(self, worker: str) -> None:
        self.world.heartbeat(worker)
        self.check()

    def _admit(self, digest) -> None:  # type: ignore[no-untyped-def]
        self.requests += 1
        name, usable = f"r{self.requests}", self.world.book.refusal(MODEL, digest) is None
        self.world.admit(name, digest)
        assert (RequestId(name) in self.world.requests) is usable, (
            "a request is refused only without its version"
        )

    def _if_known(self, call: Callable[[], object]) -> None:
        try:
            call()
        except NotFound:
            assert True

    # -- what always holds

    def check(self) -> None:
        world, all_of_them = self.world, list(self.world.book)
        world.controller.check_integrity()
        numbers = [one.number for one in all_of_them]
        assert numbers == sorted(set(numbers))
        ready = [one for one in all_of_them if one.state is AdapterState.READY]
        assert len({one.key for one in ready}) == len(ready), "a name points to one version"
        assert world.names() == {one.wish.name: one.digest for one in ready}
        assert all(one.digest for one in ready)
        self._check_workers(ready)
        for digest in world.requests.values():
            assert world.book.refusal(MODEL, digest) is None, "a request is without its version"
        self._check_orders(all_of_them)

    def _check_workers(self, ready) -> None:  # type: ignore[no-untyped-def]
        for member in self.world.controller.membership:
            if member.state is WorkerState.AVAILABLE:
                confirmed = [one.confirmed_by(member) or one.digest in member.ruled_out for one in ready]
                assert all(confirmed), "a worker takes requests of adapters that it has not got"
            if member.state is WorkerState.FETCHING:
                assert any(not one.confirmed_by(member) for one in ready), "it lacks nothing"

    def _check_orders(self, all_of_them) -> None:  # type: ignore[no-untyped-def]
        for name in self.world.workers:
            orders = self.world.ordered(name)
            known = {one.number: one for one in all_of_them}
            for order in orders:
                assert order.number in known
                assert not known[order.number].released
                assert known[order.number].state is not AdapterState.FAILED

    # -- how it ends

    def end(self) -> None:
        """The sources are well, and nobody asks for anything: what is loaded gets ready, and when it is
        unloaded and the requests end, everything is gone."""
        world = self.world
        world.sources.away.clear()
        world.sources.wrong.clear()
        world.start("decode-0")
        self.rounds(140)  # the longest pause is a minute, after each of two failures
        states = {one.state for one in world.book}
        assert states <= {AdapterState.READY, AdapterState.FAILED, AdapterState.DRAINING}, world.book
        for request_id in list(world.requests):
            world.done(request_id)
        for name in {one.wish.name for one in world.book if not one.leaving}:
            world.book.unload(MODEL, name)
        self.rounds(10)
        assert list(world.book) == []
        assert world.book.lifecycle.next_due() is None
        assert [worker.reports for worker in world.workers.values()] == [{}] * len(world.workers)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 11)), max_size=50))
@settings(max_examples=75, deadline=None, database=None)
def test_what_always_holds(events: list[tuple[str, int]]) -> None:
    play = Play()
    for kind, number in events:
        play.event(kind, number)
    play.end()


@pytest.mark.parametrize("step", range(12))
def test_a_crash_at_each_step_of_a_swap(step: int) -> None:
    """Another router takes over after so many heartbeats: the name gets to the new version all the same, the
    request of the old one keeps it, and then all is let go."""
    play = Play()
    world = play.world
    world.start("prefill-0", "decode-0")
    world.loaded("sql", "one")
    world.admit("r", world.names()["sql"])
    world.load("sql", "two")
    for beat in range(step):
        world.heartbeat(("prefill-0", "decode-0")[beat % 2])
    world.begin_term(world.book.snapshot())
    play.check()
    play.rounds(20)
    assert sorted(one.state for one in world.book) == [AdapterState.DRAINING, AdapterState.READY]
    play.end()


@pytest.mark.parametrize("again", [False, True], ids=["unload", "reload"])
@pytest.mark.parametrize("step", range(12))
def test_a_crash_at_each_step_of_an_unload(step: int, again: bool) -> None:
    """Another router takes over after so many heartbeats: the request keeps its version until it ends, and no
    worker holds that any more then, except where the name was loaded again."""
    play = Play()
    world = play.world
    world.start("prefill-0", "decode-0")
    version = world.loaded("sql", "one").digest
    world.admit("r", version)
    world.book.unload(MODEL, "sql")
    for beat in range(step):
        if beat == 6:
            world.done("r")
        world.heartbeat(("prefill-0", "decode-0")[beat % 2])
    world.begin_term(world.book.snapshot())
    play.check()
    assert world.names() == {}, "the unload was forgotten"
    if again:
        world.load("sql")
    play.rounds(20)
    if RequestId("r") in world.requests:
        assert all(version in _held(world, name) for name in world.workers), "it lost its version"
    assert world.names() == ({"sql": version} if again else {})
    world.done("r")
    play.rounds(20)
    assert [_held(world, name) for name in world.workers] == [{version} if again else set()] * 2
    play.end()


def _held(world: World, worker: str) -> set[str]:
    return {report.digest for report in world.workers[worker].reports.values()}
