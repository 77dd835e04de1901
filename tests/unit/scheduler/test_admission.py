from collections.abc import Callable
from typing import Any

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import InvalidRequest, QueueFull, QueueTimeout
from llmserve.core.ids import RequestId, TenantId, background_of
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.request import Dispatched, Fit, Queued, QueuedRequest, Rejected
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy, Scheduler
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits
from tests.unit.scheduler.conftest import ARRIVAL

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
    assert len(desk.queue._flows._deadlines._heap) < 100
    assert desk.queue.next_deadline() is None


# -- fairness and budgets in the queue


def _scheduler(
    clock: VirtualClock, slots: int = 9, most: int = 100, weights: Any = None, **limits: Any
) -> Scheduler:
    policy = Policy(max_queued_requests=most, limits=ClusterLimits(**limits), weights=weights or {})
    scheduler = Scheduler(clock, policy)
    scheduler.set_capacities({"": Capacity(slots, kv_bytes_per_token=1.0)})
    return scheduler


def _request(name: str, tenant: str = "t", prompt: int = 10, output: int = 10) -> QueuedRequest:
    return QueuedRequest(RequestId(name), TenantId(tenant), 0.0, 60.0, prompt, output)


def _offer(scheduler: Scheduler, *requests: QueuedRequest) -> list[object]:
    return [scheduler.queue.offer(request, _placed) for request in requests]


def _placed(request: QueuedRequest) -> Fit:
    return Fit.PLACED


def _dispatch(scheduler: Scheduler) -> list[str]:
    return [request.request_id for request in scheduler.queue.dispatch(_placed)]


def test_a_small_request_does_not_overtake_a_large_one_that_waits_for_tokens(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=100)
    _offer(scheduler, _request("a", prompt=50), _request("large", prompt=80), _request("b", prompt=10))
    scheduler.queue.of("").ordering = ARRIVAL
    assert _dispatch(scheduler) == ["b", "a"]  # the shorter first
    _offer(scheduler, _request("c", prompt=1, output=1))
    assert _dispatch(scheduler) == ["c"]  # shorter than the large one, so before it in the order
    scheduler.queue.release(RequestId("a"), 10)
    assert _dispatch(scheduler) == []
    scheduler.queue.release(RequestId("b"), 10)
    assert _dispatch(scheduler) == ["large"]


def test_a_request_larger_than_a_budget_is_refused_at_once(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=100, hbm_bytes=50.0)
    (answer,) = _offer(scheduler, _request("a", prompt=91))
    assert isinstance(answer, Rejected)
    assert isinstance(answer.error, InvalidRequest)
    assert "needs 101, and budgets.max_tokens_in_flight allows 100" in answer.error.message
    (answer,) = _offer(scheduler, _request("a", prompt=41))
    assert isinstance(answer, Rejected)
    assert "needs 51, and budgets.hbm_gb allows 50" in answer.error.message


def test_what_a_smaller_limit_leaves_no_room_for_is_evicted(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, slots=0, max_tokens_in_flight=100)
    _offer(scheduler, _request("large", prompt=90), _request("small", prompt=10))
    policy = Policy(limits=ClusterLimits(max_tokens_in_flight=50))
    (evicted,) = scheduler.set_policy(policy)
    assert evicted.request.request_id == "large"
    assert isinstance(evicted.error, InvalidRequest)
    scheduler.queue.check_integrity()


def test_a_tenant_at_its_limit_waits_alone_and_wakes_when_one_ends(clock: VirtualClock) -> None:
    limits = TenantLimits(TenantLimit(max_requests_in_flight=1))
    scheduler = _scheduler(clock, tenants=limits)
    _offer(scheduler, _request("a1", "a"), _request("a2", "a"), _request("b1", "b"), _request("b2", "b"))
    assert _dispatch(scheduler) == ["a1", "b1"]
    scheduler.queue.release(RequestId("b1"), 10)
    assert _dispatch(scheduler) == ["b2"]
    assert scheduler.queue.next_turn() is None
    scheduler.queue.withdraw(RequestId("a2"))
    scheduler.queue.check_integrity()


def test_a_tenant_over_its_rate_wakes_when_it_may(clock: VirtualClock) -> None:
    limits = TenantLimits(TenantLimit(requests_per_second=0.5))
    scheduler = _scheduler(clock, tenants=limits)
    _offer(scheduler, _request("a"), _request("b"), _request("c"))
    assert _dispatch(scheduler) == ["a"]  # the second saved up is half a request
    assert scheduler.queue.next_turn() == pytest.approx(clock.now() + 1.0)
    clock.advance(1.0)
    assert _dispatch(scheduler) == ["b"]
    clock.advance(2.0)
    assert _dispatch(scheduler) == ["c"]
    assert scheduler.queue.next_turn() is None


def test_a_tenant_s_batches_take_turns_by_their_weight_and_budget(clock: VirtualClock) -> None:
    """Nine requests of the tenant itself go for each line of its batch of the weight 1/9."""
    scheduler = _scheduler(clock, slots=1)
    scheduler.set_policy(Policy(background_weight=1 / 9))
    lines, requests = [f"line-{n}" for n in range(3)], [f"now-{n}" for n in range(18)]
    _offer(scheduler, *(_request(name, background_of(TenantId("a"))) for name in lines))
    _offer(scheduler, *(_request(name, "a") for name in requests))
    order = []
    while dispatched := _dispatch(scheduler):
        order += dispatched
        scheduler.queue.release(RequestId(dispatched[0]), 10)
    assert sorted(order) == sorted(lines + requests)
    assert [sum(name in lines for name in order[: 10 * n]) for n in (1, 2)] == [1, 2]


def test_new_limits_wake_a_suspended_tenant(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, tenants=TenantLimits(TenantLimit(max_requests_in_flight=1)))
    _offer(scheduler, _request("a"), _request("b"))
    assert _dispatch(scheduler) == ["a"]
    scheduler.set_policy(Policy())
    assert _dispatch(scheduler) == ["b"]


def test_room_in_a_full_queue_is_made_by_whoever_has_most_for_its_weight(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, slots=0, most=4, weights={TenantId("gold"): 3.0})
    _offer(scheduler, *(_request(name, "flood") for name in ("f1", "f2")))
    _offer(scheduler, *(_request(name, "gold") for name in ("g1", "g2")))
    (answer,) = _offer(scheduler, _request("new", "quiet"))
    assert isinstance(answer, Queued)
    assert answer.evicted is not None
    assert answer.evicted.request.request_id == "f2"
    assert "4 requests wait" in answer.evicted.error.message
    (answer,) = _offer(scheduler, _request("f3", "flood"))
    assert isinstance(answer, Rejected)
    scheduler.queue.check_integrity()


def test_a_refusal_names_the_tenant_s_own_limit_and_its_time(clock: VirtualClock) -> None:
    limits = TenantLimits(TenantLimit(tokens_per_second=10.0))
    scheduler = _scheduler(clock, most=1, tenants=limits)
    _offer(scheduler, _request("a", prompt=90))  # 100 tokens: 10 s, of which 1 was saved up
    _dispatch(scheduler)
    _, answer = _offer(scheduler, _request("b"), _request("c"))
    assert isinstance(answer, Rejected)
    assert "used up: the tenant's tokens per second" in answer.error.message
    assert answer.error.retry_after_seconds == pytest.approx(9.0 + 2.0)  # and those of b


def test_blocked_requests_are_not_all_asked_for_in_one_round(clock: VirtualClock) -> None:
    scheduler, asked = _scheduler(clock), []
    _offer(scheduler, *(_request(str(number)) for number in range(99)))

    def blocked(request: QueuedRequest) -> Fit:
        asked.append(request)
        return Fit.BLOCKED

    scheduler.queue.dispatch(blocked)
    assert len(asked) == 32
    scheduler.queue.check_integrity()


def test_who_takes_another_s_room_waits_behind_the_others(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, slots=0, most=3)
    _offer(scheduler, *(_request(f"a{number}", tenant="a") for number in range(3)))
    answer = scheduler.queue.offer(_request("b", tenant="b"), _placed)
    assert isinstance(answer, Queued)
    assert answer.ahead == 2
    assert answer.evicted is not None
    assert answer.evicted.request.request_id == "a2"
    assert (scheduler.queue.of("").tally.evicted, scheduler.queue.waiting_requests) == (1, 3)


def test_a_longer_answer_than_expected_takes_more_of_the_budgets_while_it_grows(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=100)
    _offer(scheduler, _request("a", prompt=10, output=50), _request("b", prompt=10, output=20))
    assert sorted(_dispatch(scheduler)) == ["a", "b"]
    _offer(scheduler, _request("c", prompt=5, output=5))
    scheduler.queue.correct(RequestId("b"), 35)
    assert _dispatch(scheduler) == []
    scheduler.queue.release(RequestId("b"), 35)
    assert _dispatch(scheduler) == ["c"]
    assert scheduler.stats().tokens_in_flight == 70
    scheduler.queue.correct(RequestId("nobody"), 99)
    scheduler.queue.check_integrity()


def test_what_is_learnt_of_answers_is_of_each_choice(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    two = QueuedRequest(RequestId("a"), TenantId("t"), 0.0, 60.0, prompt_tokens=10, choices=2)
    scheduler.queue.offer(two, _placed)
    _dispatch(scheduler)
    scheduler.queue.release(RequestId("a"), 80)
    assert scheduler.snapshot().output_tokens == {TenantId("t"): 40.0}
    assert scheduler.queue.release(RequestId("a"), 80) is False
    assert scheduler.queue.withdraw(RequestId("a")) is False


def test_the_report_says_whose_share_it_was(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, weights={TenantId("gold"): 3.0})
    gold, basic = _request("a", tenant="gold"), _request("b", tenant="basic")
    _offer(scheduler, gold, basic)
    assert (scheduler.queue.report(gold).weight, scheduler.queue.report(gold).share) == (3.0, 0.75)
    assert (scheduler.queue.report(basic).weight, scheduler.queue.report(basic).share) == (1.0, 0.25)


def test_the_next_turn_is_the_first_that_time_alone_brings(clock: VirtualClock) -> None:
    tenants = TenantLimits(
        named={
            TenantId("slow"): TenantLimit(requests_per_second=0.1),
            TenantId("quick"): TenantLimit(requests_per_second=0.5),
        }
    )
    scheduler = _scheduler(clock, tenants=tenants)
    assert scheduler.queue.next_turn() is None
    for tenant in ("slow", "quick"):
        _offer(scheduler, *(_request(f"{tenant}{number}", tenant=tenant) for number in range(3)))
    assert len(_dispatch(scheduler)) == 2
    # One each was saved up: the next of `quick` comes 2 s later, less the second that is saved up at rest.
    assert scheduler.queue.next_turn() == pytest.approx(clock.now() + 1.0)
    clock.advance(1.0)
    assert _dispatch(scheduler) == ["quick1"]
    assert scheduler.queue.next_turn() == pytest.approx(clock.now() + 2.0)


def test_the_link_s_rate_wakes_the_queue_by_itself(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, kv_io_bytes_per_second=10.0)
    scheduler.set_capacities({"": Capacity(9, kv_bytes_per_token=1.0, hands_over=True)})
    _offer(scheduler, _request("a", prompt=30), _request("b", prompt=40))
    assert _dispatch(scheduler) == ["a"]
    assert scheduler.queue.next_turn() == pytest.approx(clock.now() + 2.0)
    clock.advance(2.0)
    assert _dispatch(scheduler) == ["b"]
    assert scheduler.queue.next_turn() is None


def _arriving(name: str, clock: VirtualClock) -> QueuedRequest:
    return QueuedRequest(RequestId(name), TenantId("t"), clock.now(), clock.now() + 60.0, 10, 10)


def test_the_report_says_for_how_long_a_budget_of_the_cluster_was_used_up(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, max_requests_in_flight=1)
    first, second = _arriving("a", clock), _arriving("b", clock)
    _offer(scheduler, first, second)
    _dispatch(scheduler)
    clock.advance(3.0)
    scheduler.queue.release(RequestId("a"), 10)
    assert scheduler.queue.report(second).used_up_seconds == {"requests in flight": 3.0}


def test_the_report_says_for_how_long_the_tenant_s_own_budget_was_used_up(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, tenants=TenantLimits(TenantLimit(max_requests_in_flight=1)))
    first, second = _arriving("a", clock), _arriving("b", clock)
    _offer(scheduler, first, second)
    _dispatch(scheduler)
    clock.advance(3.0)
    used_up = scheduler.queue.report(second).used_up_seconds
    assert used_up == {"the tenant's requests in flight": 3.0}


def test_what_a_tenant_waited_for_is_forgotten_when_none_of_its_requests_waits(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, tenants=TenantLimits(TenantLimit(max_requests_in_flight=1)))
    _offer(scheduler, _arriving("a", clock), _arriving("b", clock))
    _dispatch(scheduler)
    scheduler.queue.withdraw(RequestId("b"))
    scheduler.queue.release(RequestId("a"), 10)
    later = _arriving("c", clock)
    _offer(scheduler, later)
    clock.advance(5.0)
    assert scheduler.queue.report(later).used_up_seconds == {}


def test_a_longer_answer_than_expected_is_charged_to_its_tenant_while_it_grows(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, _request("a", prompt=10, output=1000))
    _dispatch(scheduler)
    before = scheduler.snapshot().fairness.highest
    scheduler.queue.correct(RequestId("a"), 900)  # a first answer is expected to have 256
    assert scheduler.snapshot().fairness.highest - before == 900 - 256


def test_the_rate_of_service_is_measured_from_when_the_queue_fills(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1)
    desk.offer("a")
    desk.dispatch()
    desk.clock.advance(10.0)  # nobody waits
    desk.offer("b")
    desk.clock.advance(2.0)
    desk.queue.release(RequestId("a"))
    assert desk.queue.retry_after_seconds(desk.request("c")) == pytest.approx(2 * 2.0)


def test_the_rate_of_service_does_not_count_the_time_after_the_queue_has_emptied(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1)
    desk.offer("a")
    desk.dispatch()
    desk.offer("b")
    desk.clock.advance(2.0)
    desk.queue.release(RequestId("a"))
    desk.dispatch()
    desk.clock.advance(10.0)  # nobody waits
    desk.queue.release(RequestId("b"))
    assert desk.queue.retry_after_seconds(desk.request("c")) == pytest.approx(2.0)


def test_what_all_waited_for_is_forgotten_when_nobody_waits(make_desk: MakeDesk) -> None:
    desk = make_desk(limit=1)
    desk.offer("a")
    desk.offer("b")
    desk.dispatch()
    desk.queue.withdraw(RequestId("b"))
    later = desk.request("c")
    desk.queue.offer(later, desk.place)
    desk.clock.advance(5.0)
    assert desk.queue.report(later).used_up_seconds == {}


def test_the_report_says_for_how_long_no_worker_had_room(make_desk: MakeDesk) -> None:
    desk = make_desk()
    desk.blocked.add("a")
    request = desk.request("a")
    desk.queue.offer(request, desk.place)
    desk.dispatch()
    desk.clock.advance(3.0)
    assert desk.queue.report(request).used_up_seconds == {"free seats of workers": 3.0}


def test_of_a_tenant_s_rate_and_the_link_s_the_sooner_wakes_the_queue(clock: VirtualClock) -> None:
    limited = TenantLimits(named={TenantId("a"): TenantLimit(requests_per_second=0.5)})
    scheduler = _scheduler(clock, kv_io_bytes_per_second=10.0, tenants=limited)
    scheduler.set_capacities({"": Capacity(9, kv_bytes_per_token=1.0, hands_over=True)})
    _offer(scheduler, _request("a1", "a", prompt=1), _request("a2", "a", prompt=1))
    assert _dispatch(scheduler) == ["a1"]
    _offer(scheduler, _request("b1", "b", prompt=30), _request("b2", "b", prompt=30))
    assert _dispatch(scheduler) == ["b1"]
    assert scheduler.queue.next_turn() == pytest.approx(clock.now() + 1.0)


def test_weights_hold_from_the_start_and_from_the_moment_that_they_change(clock: VirtualClock) -> None:
    gold = TenantId("gold")
    scheduler = Scheduler(clock, Policy(weights={gold: 3.0}))
    assert scheduler.queue.report(_request("a", tenant="gold")).weight == 3.0
    scheduler.set_policy(Policy(weights={gold: 2.0}))
    assert scheduler.queue.report(_request("a", tenant="gold")).weight == 2.0


def test_a_request_that_was_given_up_teaches_nothing_of_answers(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, _request("a"))
    _dispatch(scheduler)
    scheduler.queue.release(RequestId("a"))
    assert scheduler.snapshot().output_tokens == {}
