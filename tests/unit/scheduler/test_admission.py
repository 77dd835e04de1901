from collections.abc import Callable
from typing import Any

import pytest

from llmserve.core.errors import QueueFull, QueueTimeout
from llmserve.core.ids import RequestId
from llmserve.scheduler.decisions import Dispatched, Fit, Queued, Rejected
from llmserve.scheduler.request import QueuedRequest

MakeDesk = Callable[..., Any]


class FewestTokens:
    """Another ordering."""

    def key(self, request: QueuedRequest) -> float:
        return request.max_output_tokens


def test_dispatches_in_order_up_to_the_limit(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=2)
    for name in "abcd":
        desk.offer(name)
    assert desk.dispatch() == ["a", "b"]
    assert desk.dispatch() == []
    desk.queue.release(RequestId("b"))
    assert desk.dispatch() == ["c"]
    desk.queue.check_integrity()


def test_a_used_up_budget_asks_no_placement(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=0)
    desk.offer("a")
    assert desk.dispatch() == []
    assert desk.asked == []


def test_a_blocked_request_holds_up_nobody_and_keeps_its_turn(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1)
    desk.blocked = {"a"}
    for name in "abc":
        desk.offer(name)
    assert desk.dispatch() == ["b"]
    desk.blocked.clear()
    desk.queue.release(RequestId("b"))
    assert desk.dispatch() == ["a"]


def test_full_stops_asking(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=9)
    for name in "abc":
        desk.offer(name)
    asked: list[str] = []

    def full(request: QueuedRequest) -> Fit:
        asked.append(request.request_id)
        return Fit.FULL

    assert desk.queue.dispatch(full) == []
    assert asked == ["a"]


def test_rejects_when_full_and_says_why(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1, max_queued=2)
    assert isinstance(desk.offer("a"), Queued)
    desk.dispatch()
    assert desk.offer("b") == Queued(ahead=0)
    assert desk.offer("c") == Queued(ahead=1)
    answer = desk.offer("d")
    assert isinstance(answer, Rejected)
    assert isinstance(answer.error, QueueFull)
    assert "2 requests wait" in answer.error.message
    assert "requests in flight" in answer.error.message
    assert answer.error.retry_after_seconds == 60.0  # nothing has ended yet: no rate to go by
    desk.queue.check_integrity()


def test_no_queue_at_all_still_serves_what_need_not_wait(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1, max_queued=0)
    assert desk.offer("a") == Dispatched()
    assert isinstance(desk.offer("b"), Rejected)
    desk.queue.release(RequestId("a"))
    assert desk.offer("c") == Dispatched()
    desk.queue.check_integrity()


def test_retry_after_follows_the_rate_of_service_under_load(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1, max_queued=30)
    desk.clock.advance(3600)  # an idle hour says nothing of the rate
    for number in range(30):
        desk.offer(str(number))
    desk.dispatch()
    for number in range(10):
        desk.clock.advance(0.5)
        desk.queue.release(RequestId(str(number)))
        desk.dispatch()
    assert desk.queue.waiting_requests == 19
    assert desk.queue.retry_after_seconds(desk.request("next")) == pytest.approx(20 * 0.5)
    desk.clock.advance(15)  # a stall
    assert desk.queue.retry_after_seconds(desk.request("next")) == pytest.approx(20 * 2.0)


def test_evicts_at_the_deadline(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=0)
    desk.offer("late", timeout=5.0)
    desk.offer("early", timeout=2.0)
    assert desk.queue.next_deadline() == 102.0
    desk.clock.advance(1.9)
    assert desk.queue.expire() == []
    desk.clock.advance(0.2)
    (evicted,) = desk.queue.expire()
    assert evicted.request.request_id == "early"
    assert isinstance(evicted.error, QueueTimeout)
    assert "2.1 s" in evicted.error.message
    assert desk.queue.next_deadline() == 105.0
    desk.queue.check_integrity()


def test_a_deadline_can_be_moved_both_ways(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=0)
    desk.offer("a", timeout=10.0)
    desk.queue.set_deadline(RequestId("a"), 101.0)
    assert desk.queue.next_deadline() == 101.0
    desk.queue.set_deadline(RequestId("a"), 110.0)
    desk.clock.advance(5)
    assert desk.queue.expire() == []
    assert desk.queue.next_deadline() == 110.0


def test_each_exit_counts_once(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1)
    desk.offer("a")
    desk.offer("b")
    desk.dispatch()
    assert desk.queue.withdraw(RequestId("b"))
    assert not desk.queue.withdraw(RequestId("b"))
    assert not desk.queue.withdraw(RequestId("a"))  # it runs
    assert desk.queue.release(RequestId("a"))
    assert not desk.queue.release(RequestId("a"))
    assert desk.budget.in_flight == 0
    desk.queue.check_integrity()


def test_adopted_requests_count_even_past_the_limit(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1)
    desk.queue.adopt(desk.request("x"))
    desk.queue.adopt(desk.request("y"))
    desk.offer("a")
    assert desk.budget.in_flight == 2
    desk.queue.release(RequestId("x"))
    assert desk.dispatch() == []
    desk.queue.release(RequestId("y"))
    assert desk.dispatch() == ["a"]
    desk.queue.check_integrity()


def test_an_ordering_decides_within_a_tenant(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=9, ordering=FewestTokens())
    desk.offer("long", tokens=100)
    desk.offer("short", tokens=1)
    desk.offer("other tenant", tenant="y", tokens=500)
    assert desk.dispatch() == ["short", "other tenant", "long"]  # tenants in turn


def test_deadlines_of_the_departed_are_not_kept(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1)
    for number in range(1000):
        desk.offer(str(number))
        desk.dispatch()
        desk.queue.release(RequestId(str(number)))
    assert len(desk.queue._deadlines._heap) < 100
    assert desk.queue.next_deadline() is None
