"""What a rejected client receives."""

from dataclasses import replace

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.budgets import RequestBudget, Wait
from llmserve.scheduler.fairness import FairShare, TenantShares
from llmserve.scheduler.flows import Flows
from llmserve.scheduler.rate import ServiceRate
from llmserve.scheduler.refusals import Refusals
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.resources import BudgetSet


class _Room(RequestBudget):
    """A budget with a known wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(9)
        self._seconds = seconds

    def wait(self, request: QueuedRequest, ahead: int) -> Wait:
        return Wait(self._seconds + ahead)


def _request(name: str, tenant: str = "t") -> QueuedRequest:
    return QueuedRequest(RequestId(name), TenantId(tenant), 0.0, 60.0)


def _refusals(
    room_seconds: float, waiting: dict[str, int], departed: int, longest: float = 600.0
) -> Refusals:
    """Ten seconds with a backlog have passed."""
    clock, flows, rate = VirtualClock(0.0), Flows(), ServiceRate()
    rate.backlog(True, 0.0)
    for tenant, count in waiting.items():
        for number in range(count):
            flows.add(_request(f"{tenant}{number}", tenant), 0.0)
    clock.advance(10.0)
    for _ in range(departed):
        rate.departed(10.0)
    fairness = FairShare(TenantShares({TenantId("gold"): 3.0}))
    return Refusals(clock, flows, BudgetSet((_Room(room_seconds),), ()), fairness, rate, longest)


@pytest.mark.parametrize(
    ("waiting", "tenant", "seconds"),
    [
        ({"gold": 2, "t": 6}, "gold", 4.0),  # its third turn, of which it has three in four
        ({"gold": 2, "t": 6}, "t", 9.0),  # one more than wait: its share would be later than the whole queue
        ({"t": 3}, "t", 4.0),
        ({}, "t", 1.0),
    ],
)
def test_a_turn_comes_by_the_tenants_share(waiting: dict[str, int], tenant: str, seconds: float) -> None:
    refusals = _refusals(-99.0, waiting, departed=10)
    assert refusals.retry_after_seconds(_request("new", tenant)) == pytest.approx(seconds)


def test_the_longer_of_turn_and_room_counts() -> None:
    assert _refusals(7.0, {"t": 3}, departed=10).retry_after_seconds(_request("new")) == 10.0
    assert _refusals(0.5, {"t": 3}, departed=10).retry_after_seconds(_request("new")) == 4.0


def test_where_no_rate_is_known_the_room_says_when() -> None:
    assert _refusals(7.0, {}, departed=0).retry_after_seconds(_request("new")) == 7.0
    assert _refusals(0.0, {}, departed=0).retry_after_seconds(_request("new")) == 600.0


def test_it_is_never_at_once_and_never_later_than_the_longest() -> None:
    assert _refusals(-99.0, {}, departed=1000).retry_after_seconds(_request("new")) == 0.1
    assert _refusals(99.0, {}, departed=10, longest=5.0).retry_after_seconds(_request("new")) == 5.0


def test_the_message_names_what_was_used_up_and_how_long_it_took() -> None:
    refusals = _refusals(0.0, {"t": 2}, departed=10)
    assert refusals.full(_request("new")).message == "the queue is full: 2 requests wait"
    assert refusals.timeout(_request("new")).message == "waited 10.0 s for a place"


def test_a_timeout_says_how_long_the_request_waited() -> None:
    late = replace(_request("late"), arrived_at=4.0)
    assert "waited 6.0 s" in _refusals(1.0, {}, departed=1).timeout(late).message
