"""Terms: won, kept, lost, promised. In virtual time."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import NotLeader, StateUnavailable
from llmserve.router.leader.election import ALONE, LeaderElection, TermTimes
from llmserve.router.leader.state import MemoryState, Term
from tests.support.virtual_time import LoopClock

pytestmark = pytest.mark.virtual_time

TIMES = TermTimes(lease_seconds=0.3, renew_seconds=0.05, poll_seconds=0.01)
SOON, POLL_SECONDS = 5.0, 0.005


class MortalState(MemoryState):
    """Away when it is told to be."""

    away = False

    def _check(self) -> None:
        if self.away:
            raise StateUnavailable("it is away")

    async def campaign(self, leader: str, seconds: float) -> Term | str:
        self._check()
        return await super().campaign(leader, seconds)

    async def renew(self, term: Term, seconds: float) -> bool:
        self._check()
        return await super().renew(term, seconds)

    async def resign(self, term: Term) -> None:
        self._check()
        await super().resign(term)


@dataclass
class TermHandler:
    """Notes what begins and ends."""

    log: list[str] = field(default_factory=list)
    refuses: bool = False

    async def begin(self, term: Term) -> None:
        if self.refuses:
            raise StateUnavailable("cannot be loaded")
        self.log.append("begin")

    async def end(self) -> None:
        self.log.append("end")


class Others:
    """The other router, or silence."""

    def __init__(self) -> None:
        self.one: LeaderElection | None = None
        self.dead = False

    async def promise(self, term: Term, seconds: float) -> bool:
        return self.dead or (self.one is not None and self.one.promise(term.leader, term.epoch, seconds))


class Router:
    def __init__(self, name: str, state: MortalState, times: TermTimes = TIMES) -> None:
        self.name, self.term, self.others = name, TermHandler(), Others()
        self.leadership = LeaderElection(state, self.others, self.term, times, LoopClock())
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self.leadership.run(self.name))

    async def kill(self) -> None:
        """Without resigning."""
        if self.task:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    @property
    def leads(self) -> bool:
        return self.leadership.status().leads

    async def until(self, leads: bool) -> None:
        async with asyncio.timeout(SOON):
            while self.leads is not leads:  # noqa: ASYNC110 - time decides, there is no event
                await asyncio.sleep(POLL_SECONDS)


@dataclass
class Pair:
    state: MortalState
    a: Router
    b: Router


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """a leads, b stands by; they do not reach each other."""
    state = MortalState(LoopClock())
    pair = Pair(state, Router("a", state), Router("b", state))
    pair.a.start()
    await pair.a.until(True)
    pair.b.start()
    yield pair
    await pair.a.kill()
    await pair.b.kill()


async def test_one_leads_and_keeps_leading(pair: Pair) -> None:
    await asyncio.sleep(2 * TIMES.lease_seconds)
    assert (pair.a.leads, pair.b.leads) == (True, False)
    pair.a.leadership.check()
    with pytest.raises(NotLeader, match="not the leader; leader is at a"):
        pair.b.leadership.check()


async def test_a_dead_leader_is_followed_after_its_lease(pair: Pair) -> None:
    await asyncio.sleep(2 * TIMES.lease_seconds)
    epoch = pair.a.leadership.status().epoch
    await pair.a.kill()
    await pair.b.until(True)
    assert pair.b.leadership.status().epoch > epoch
    assert pair.a.term.log == ["begin", "end"]


async def test_who_resigns_is_followed_at_once(pair: Pair) -> None:
    await asyncio.sleep(TIMES.lease_seconds)  # b was just started, and keeps off for so long
    began = LoopClock().now()
    await pair.a.kill()
    await pair.a.leadership.resign()
    await pair.b.until(True)
    assert LoopClock().now() - began <= TIMES.poll_seconds + POLL_SECONDS


async def test_no_two_lead_when_only_the_state_fails(pair: Pair) -> None:
    pair.state.away = True
    await pair.a.until(False)
    with pytest.raises(NotLeader):
        pair.a.leadership.check()
    await asyncio.sleep(TIMES.lease_seconds)
    assert (pair.a.leads, pair.b.leads) == (False, False)
    assert pair.a.leadership.status().error == "it is away"
    pair.state.away = False
    async with asyncio.timeout(SOON):
        while pair.a.leads is pair.b.leads:  # noqa: ASYNC110 - as above
            await asyncio.sleep(POLL_SECONDS)
    assert not pair.a.leads or not pair.b.leads


async def test_it_leads_on_by_promises(pair: Pair) -> None:
    pair.a.others.one = pair.b.leadership
    pair.state.away = True
    await asyncio.sleep(3 * TIMES.lease_seconds)
    epoch = pair.a.leadership.status().epoch
    assert pair.a.leads
    pair.state.away = False
    await asyncio.sleep(3 * TIMES.lease_seconds)
    assert pair.a.leadership.status().epoch == epoch
    assert (pair.a.leadership.status().error, pair.b.leads) == ("", False)


async def test_it_leads_on_when_the_others_do_not_run(pair: Pair) -> None:
    await pair.b.kill()
    pair.a.others.dead = True
    pair.state.away = True
    await asyncio.sleep(3 * TIMES.lease_seconds)
    assert pair.a.leads


async def test_who_starts_keeps_off_for_a_lease(pair: Pair) -> None:
    """A leader that lives on promises, or whose lease was lost, has time to renew it."""
    await pair.a.kill()
    await pair.a.leadership.resign()
    began = LoopClock().now()
    late = Router("c", pair.state)
    await pair.b.kill()
    late.start()
    await late.until(True)
    assert LoopClock().now() - began >= TIMES.lease_seconds
    await late.kill()


async def test_who_leads_promises_nothing(pair: Pair) -> None:
    assert not pair.a.leadership.promise("b", 1, 5.0)
    assert pair.a.leads


async def test_time_alone_ends_a_term() -> None:
    """As for a process that was paused: nothing has run since, and it does not lead."""
    clock = VirtualClock()
    state = MemoryState(clock)
    paused = LeaderElection(state, Others(), TermHandler(), TIMES, clock)
    task = asyncio.create_task(paused.run("a"))
    async with asyncio.timeout(SOON):
        while not paused.status().leads:
            clock.advance(0.05)
            await asyncio.sleep(0.001)
    clock.advance(TIMES.usable_seconds)
    assert not paused.status().leads
    with pytest.raises(NotLeader):
        paused.check()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_cannot_be_loaded_is_tried_again() -> None:
    router = Router("a", MortalState(LoopClock()))
    router.term.refuses = True
    router.start()
    async with asyncio.timeout(SOON):
        while "end" not in router.term.log:  # noqa: ASYNC110 - as above
            await asyncio.sleep(POLL_SECONDS)
    assert not router.leads
    router.term.refuses = False
    await router.until(True)
    await router.kill()


async def test_alone_it_leads_at_once_and_for_ever() -> None:
    router = Router("a", MortalState(LoopClock()), ALONE)
    router.start()
    await router.until(True)
    assert router.term.log == ["begin"]
    await router.kill()
