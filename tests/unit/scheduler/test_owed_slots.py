"""Tenants whose requests wait for adapter slots, in the queue: what they are owed, and by whom."""

from dataclasses import dataclass, field, replace

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import AdapterDigest, RequestId, TenantId
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.ordering import AdapterTurns
from llmserve.scheduler.request import Dispatched, Fit, QueuedRequest, Rejected
from llmserve.scheduler.scheduler import Policy, Scheduler

AGING_SECONDS = 20.0  # so a tenant has patience for 2 s


@dataclass
class Desk:
    """One adapter, `a`, has a slot; requests of others are answered as `others` says. The first letter of a
    request is its adapter (x: none), the second its tenant."""

    scheduler: Scheduler
    clock: VirtualClock
    others: Fit = Fit.NO_SLOT
    asked: list[str] = field(default_factory=list)

    def offer(self, name: str) -> object:
        adapter = AdapterDigest("" if name[0] == "x" else name[0])
        now = self.clock.now()
        request = QueuedRequest(RequestId(name), TenantId(name[1]), now, now + 1e6, 90, 10, adapter=adapter)
        return self.scheduler.queue.offer(request, self.place)

    def place(self, request: QueuedRequest) -> Fit:
        self.asked.append(request.request_id)
        return Fit.PLACED if request.adapter in ("", "a") else self.others

    def dispatch(self) -> list[str]:
        placed: list[str] = [one.request_id for one in self.scheduler.queue.dispatch(self.place)]
        self.scheduler.queue.check_integrity()
        return placed

    def serve(self, *names: str) -> list[str]:
        """Offers them and dispatches, one each 0.5 s."""
        placed: list[str] = []
        for name in names:
            self.offer(name)
            self.clock.advance(0.5)
            placed += self.dispatch()
        return placed


@pytest.fixture
def desk(clock: VirtualClock) -> Desk:
    scheduler = Scheduler(clock, Policy(adapters=AdapterTurns(aging_seconds=AGING_SECONDS)))
    scheduler.set_capacities({"": Capacity(1000)})
    return Desk(scheduler, clock)


def names(letters: str, count: int) -> list[str]:
    return [f"{letters}{number}" for number in range(count)]


def test_others_pass_until_a_tenant_is_behind_for_its_patience(desk: Desk) -> None:
    """g waits for a slot of b. Virtual time moves from the second request of t on, at 101 s."""
    desk.serve("bg")
    passed = desk.serve(*names("at", 12))
    assert passed == names("at", 6)
    assert desk.serve("xt") == ["xt"], "the model itself needs no slot"


def test_the_slot_goes_to_whom_it_is_owed(desk: Desk) -> None:
    """It takes its missed turns first, and then both have equal parts again."""
    desk.serve("bg", *names("at", 12))
    desk.others = Fit.PLACED
    for name in names("bg", 8):
        desk.offer(name)
    placed = desk.dispatch()
    assert placed[:6] == ["bg", *names("bg", 5)]
    assert {name[:2] for name in placed[6:8]} == {"bg", "at"}


def test_nothing_is_owed_to_who_does_not_lack_a_slot(desk: Desk) -> None:
    """No worker can have its adapter."""
    desk.others = Fit.BLOCKED
    desk.serve("bg")
    assert len(desk.serve(*names("at", 12))) == 12


def test_its_own_requests_go_on(desk: Desk) -> None:
    desk.serve("bg", *names("at", 12))
    assert desk.serve("ag") == ["ag"]


def test_who_has_waited_long_is_not_kept_from_a_slot(desk: Desk) -> None:
    desk.serve("bg", *names("at", 6))
    desk.offer("att")
    desk.clock.advance(AGING_SECONDS - 0.1)
    assert desk.dispatch() == []
    desk.clock.advance(0.1)
    assert desk.dispatch() == ["att"]


def test_two_who_are_behind_are_owed_slots_one_after_the_other(desk: Desk) -> None:
    """The one that is farther behind comes first, and the other one waits like all."""
    desk.serve("bg", "ch", *names("at", 8))
    desk.asked.clear()
    assert desk.dispatch() == []
    assert desk.asked == ["bg"]


def test_a_full_queue_is_no_way_around(desk: Desk) -> None:
    """Who finds the queue full may run at once, but in its tenant's turn, and not in a slot that is owed."""
    desk.scheduler.set_policy(replace(desk.scheduler.policy, max_queued_requests=1))
    desk.serve("bg")
    answers = []
    for name in names("at", 12):
        answers.append(type(desk.offer(name)))
        desk.clock.advance(0.5)
        desk.dispatch()
    assert answers == [Dispatched] * 6 + [Rejected] * 6
    assert isinstance(desk.offer("xt"), Dispatched)


def test_other_limits_hold_from_the_moment_that_they_change(desk: Desk) -> None:
    desk.serve("bg", *names("at", 6))
    desk.scheduler.set_policy(replace(desk.scheduler.policy, adapters=AdapterTurns(aging_seconds=1e6)))
    assert desk.serve("atl") == ["atl"]
