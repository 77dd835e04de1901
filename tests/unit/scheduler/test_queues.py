"""Several models in one cluster: nobody waits for a model that is not his, and budgets are shared fairly."""

from typing import Any

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.request import Fit, Place, Queued, QueuedRequest, Rejected
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy, Scheduler
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits

_FREE = Capacity(10_000, 1.0)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(10.0)


def _scheduler(clock: VirtualClock, most: int = 1000, weights: Any = None, **limits: Any) -> Scheduler:
    made = Scheduler(clock, Policy(most, limits=ClusterLimits(**limits), weights=weights or {}))
    made.set_capacities({"a": _FREE, "b": _FREE})
    return made


def _request(name: str, tenant: str = "t", prompt: int = 10, timeout: float = 60.0) -> QueuedRequest:
    """Its model is the first letter of its name. Its answer is of one token."""
    return QueuedRequest(*(RequestId(name), TenantId(tenant), 10.0, 10.0 + timeout, prompt, 1), model=name[0])


def _offer(scheduler: Scheduler, *requests: QueuedRequest) -> list[object]:
    return [scheduler.queue.offer(request, _placed) for request in requests]


def _placed(request: QueuedRequest) -> Fit:
    return Fit.PLACED


def _only(*models: str) -> Place:
    return lambda request: Fit.PLACED if request.model in models else Fit.FULL


def _dispatch(scheduler: Scheduler, place: Place = _placed, probe: Place = _placed) -> list[str]:
    placed = scheduler.queue.dispatch(place, probe)
    scheduler.queue.check_integrity()
    return [request.request_id for request in placed]


def test_a_long_queue_of_a_model_without_places_delays_no_other(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, *(_request(f"a{number}") for number in range(300)), _request("b1"), _request("b2"))
    asked = list[str]()

    def place(request: QueuedRequest) -> Fit:
        asked.append(request.request_id)
        return _only("b")(request)

    assert _dispatch(scheduler, place) == ["b1", "b2"]
    assert len([name for name in asked if name[0] == "a"]) <= 2, "one question for each round"
    assert (scheduler.queue.waiting_requests, scheduler.queue.running_requests) == (300, 2)
    assert scheduler.queue.models_in_want() == frozenset()


def test_blocked_requests_of_one_model_are_not_passed_over_for_those_of_another(clock: VirtualClock) -> None:
    """The bound of requests that are passed over is one for each model."""
    scheduler = _scheduler(clock)
    _offer(
        scheduler, *(_request(f"a{number}") for number in range(100)), *(_request(f"b{n}") for n in range(40))
    )
    blocked = [f"b{number}" for number in range(31)]

    def place(request: QueuedRequest) -> Fit:
        return Fit.BLOCKED if request.model == "a" or request.request_id in blocked else Fit.PLACED

    assert len(_dispatch(scheduler, place)) == 9


def test_a_full_queue_of_one_model_rejects_no_request_of_another(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, most=2)
    names = ("a1", "a2", "a3", "b1")
    first, second, third, other = (scheduler.queue.offer(_request(name), _only()) for name in names)
    assert (first, second, other) == (Queued(0), Queued(1), Queued(0))
    assert isinstance(third, Rejected)
    assert scheduler.stats().queue_limit_requests == 4


def test_what_a_tenant_used_of_one_model_does_not_count_for_another(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, *(_request(f"a{number}", "red", prompt=1000) for number in range(5)))
    assert len(_dispatch(scheduler)) == 5
    _offer(scheduler, *(_request(f"b{number}", "blue") for number in range(4)))
    _offer(scheduler, *(_request(f"b{number}", "red") for number in range(4, 8)))
    turns = [name in ("b0", "b1", "b2", "b3") for name in _dispatch(scheduler)]
    assert turns == [True, False] * 4


def test_what_answers_of_one_model_have_is_not_expected_of_another(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    long = QueuedRequest(RequestId("a"), TenantId("t"), 10.0, 70.0, 10, 5000, model="a")
    scheduler.queue.adopt(long)
    scheduler.queue.release(RequestId("a"), 4000)
    expected = {}
    for model in "ab":
        request = QueuedRequest(RequestId(f"{model}2"), TenantId("t"), 10.0, 70.0, 10, 5000, model=model)
        scheduler.queue.offer(request, _placed)
        (placed,) = scheduler.queue.dispatch(_placed)
        expected[model] = placed.expected_output_tokens
    assert expected["a"] == 4000
    assert expected["b"] < 1000


def test_a_model_s_weights_are_those_of_the_manifest(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, weights={TenantId("gold"): 3.0})
    for model in "ab":
        _offer(scheduler, *(_request(f"{model}g{n}", "gold") for n in range(6)))
        _offer(scheduler, *(_request(f"{model}p{n}", "plain") for n in range(6)))
    order = _dispatch(scheduler)
    for model in "ab":
        own = [name[1] for name in order if name[0] == model]
        assert own[:8].count("g") == 6


def test_a_large_request_that_waits_for_a_budget_of_all_is_not_overtaken_by_another_model(
    clock: VirtualClock,
) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=100)
    _offer(scheduler, _request("b0", prompt=49))
    assert _dispatch(scheduler) == ["b0"]
    _offer(scheduler, _request("a1", prompt=80), _request("b1", prompt=1))
    assert _dispatch(scheduler) == [], "model a holds nothing, so its turn is first"
    assert scheduler.queue.of("a").holds_up_all
    assert not scheduler.queue.of("b").holds_up_all
    assert scheduler.queue.of("b").ended_by == "tokens in flight"
    assert scheduler.queue.next_turn() is None
    clock.advance(5.0)
    scheduler.queue.release(RequestId("b0"), 1)
    assert _dispatch(scheduler) == ["a1", "b1"]
    report = scheduler.queue.report(_request("b1", prompt=1))
    assert report.used_up_seconds == {"tokens in flight": 5.0}


def test_a_queue_that_was_never_asked_holds_nobody_up(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, _request("a1"))
    assert not scheduler.queue.of("a").holds_up_all
    assert scheduler.queue.of("a").ended_by == ""


def test_a_model_that_holds_less_of_its_share_comes_first(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=110)
    _offer(scheduler, *(_request(f"a{number}") for number in range(20)))
    assert len(_dispatch(scheduler)) == 10
    _offer(scheduler, *(_request(f"b{number}") for number in range(20)))
    for number in range(5):
        scheduler.queue.release(RequestId(f"a{number}"), 1)
        assert _dispatch(scheduler) == [f"b{number}"]
    scheduler.queue.release(RequestId("a5"), 1)
    assert _dispatch(scheduler) == ["a10"], "now model a holds less"


def test_a_model_keeps_to_its_share_while_others_wait_and_takes_all_when_none_does(
    clock: VirtualClock,
) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=110, shares={"a": 0.3})
    _offer(
        scheduler, *(_request(f"a{number}") for number in range(20)), *(_request(f"b{n}") for n in range(9))
    )
    placed = _dispatch(scheduler)
    assert placed[:3] == ["a0", "a1", "a2"], "33 of 110 tokens"
    assert placed[3:] == [f"b{number}" for number in range(7)], "two of b wait for room"
    assert not scheduler.queue.of("a").holds_up_all
    for number in range(2):
        scheduler.queue.release(RequestId(f"b{number}"), 1)
    assert _dispatch(scheduler) == ["b7", "b8"]
    scheduler.queue.release(RequestId("b2"), 1)
    assert _dispatch(scheduler) == ["a3"], "nothing of b waits"


def test_what_becomes_free_when_the_last_of_another_model_goes_is_used_in_the_same_round(
    clock: VirtualClock,
) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=110, shares={"a": 0.3})
    _offer(scheduler, *(_request(f"a{number}") for number in range(20)), _request("b0"))
    assert len(_dispatch(scheduler)) == 10


def test_a_tenant_that_waits_for_its_own_budget_goes_on_when_a_request_of_any_model_ends(
    clock: VirtualClock,
) -> None:
    limits = TenantLimits(TenantLimit(max_requests_in_flight=1))
    scheduler = _scheduler(clock, tenants=limits)
    _offer(scheduler, _request("a1"))
    assert _dispatch(scheduler) == ["a1"]
    _offer(scheduler, _request("b1"))
    assert _dispatch(scheduler) == []
    assert scheduler.queue.release(RequestId("a1"), 1)
    assert _dispatch(scheduler) == ["b1"]
    assert not scheduler.queue.release(RequestId("a1"), 1)


def test_each_request_is_found_in_the_queue_of_its_model(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, _request("a1", timeout=5.0), _request("b1", timeout=3.0), _request("b2"))
    assert [request.request_id for request in scheduler.queue.waiting()] == ["a1", "b1", "b2"]
    assert scheduler.queue.next_deadline() == 13.0
    assert scheduler.queue.withdraw(RequestId("b2"))
    assert not scheduler.queue.withdraw(RequestId("b2"))
    clock.advance(5.0)
    assert {one.request.request_id for one in scheduler.queue.expire()} == {"a1", "b1"}
    assert scheduler.queue.next_deadline() is None
    adopted = _request("b3")
    scheduler.queue.adopt(adopted)
    scheduler.queue.correct(RequestId("b3"), 500)
    assert scheduler.stats().tokens_in_flight == 510
    scheduler.queue.check_integrity()


def test_the_next_turn_is_the_earliest_of_all_models(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, tenants=TenantLimits(TenantLimit(requests_per_second=0.5)))
    _offer(scheduler, _request("a1", "x"), _request("b1", "y"), _request("b2", "y"))
    assert _dispatch(scheduler) == ["a1", "b1"]
    _offer(scheduler, _request("a2", "x"))
    assert _dispatch(scheduler) == []
    assert scheduler.queue.next_turn() == pytest.approx(11.0)


def test_limits_that_a_model_s_request_can_never_meet_evict_it(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, _request("a1", prompt=50), _request("b1", prompt=50))
    scheduler.set_policy(Policy(limits=ClusterLimits(hbm_bytes=60.0)))
    evicted = scheduler.set_capacities({"a": Capacity(9, 2.0), "b": Capacity(9, 1.0)})
    assert [one.request.request_id for one in evicted] == ["a1"]


def test_integrity_counts_the_requests_of_all_models(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, _request("a1"), _request("b1"))
    assert len(_dispatch(scheduler)) == 2
    del scheduler.queue.of("b")._running[RequestId("b1")]
    with pytest.raises(AssertionError):
        scheduler.queue.check_integrity()


def test_retry_after_is_by_the_model_s_own_rate(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, *(_request(f"{model}{number}") for model in "ab" for number in range(3)))
    (first, *_) = scheduler.queue.dispatch(_placed)
    _offer(scheduler, *(_request(f"{model}x{number}") for model in "ab" for number in range(3)))
    clock.advance(2.0)
    scheduler.queue.release(first.request_id, 1)
    slow, unknown = (scheduler.queue.retry_after_seconds(_request(f"{model}z")) for model in "ab")
    assert slow < unknown == 60.0


def test_a_request_that_ends_without_an_answer_was_served_its_prompt(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, _request("a1", prompt=10))
    assert _dispatch(scheduler) == ["a1"]
    assert scheduler.queue.release(RequestId("a1"))
    assert [one.served_tokens for one in scheduler.stats().tenants] == [10]


_ASK = {"without workers": Fit.FULL, "its worker is excluded": Fit.BLOCKED, "no adapter slot": Fit.NO_SLOT}


@pytest.mark.parametrize("answer", _ASK.values(), ids=_ASK)
def test_a_large_request_without_a_place_holds_up_no_other_model(clock: VirtualClock, answer: Fit) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=1000)
    _offer(scheduler, _request("a0", prompt=899))
    assert _dispatch(scheduler) == ["a0"]
    _offer(scheduler, _request("b1", prompt=499), _request("a1", prompt=49))
    assert _dispatch(scheduler, _placed, lambda request: answer) == ["a1"]
    assert not scheduler.queue.of("b").holds_up_all
    assert scheduler.queue.of("b").ended_by == "tokens in flight"
    _offer(scheduler, _request("a2", prompt=9))
    assert _dispatch(scheduler) == [], "model b has a place again, and its turn is first"
    assert scheduler.queue.of("b").holds_up_all


def test_a_small_request_passes_a_large_one_of_its_model_that_is_blocked(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=1000)
    _offer(scheduler, _request("a0", prompt=899))
    assert _dispatch(scheduler) == ["a0"]
    _offer(scheduler, _request("b1", "x", prompt=499), _request("b2", "y"))
    assert _dispatch(scheduler, _placed, lambda request: Fit.BLOCKED) == ["b2"]


def test_a_model_without_a_place_leaves_the_others_more_than_their_share(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, max_tokens_in_flight=110, shares={"a": 0.3})
    _offer(scheduler, *(_request(f"a{number}") for number in range(20)))
    _offer(scheduler, _request("b0"), _request("b1"))
    assert len(_dispatch(scheduler, _only("a"))) == 10
    assert scheduler.queue.models_in_want() == {"a"}
    scheduler.queue.release(RequestId("a0"), 1)
    assert _dispatch(scheduler) == ["b0"], "model b has a place again"


def test_a_model_wants_room_again_when_its_place_may_be_free(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock)
    _offer(scheduler, _request("b0"))
    assert scheduler.queue.models_in_want() == {"b"}
    assert _dispatch(scheduler) == ["b0"]
    assert scheduler.queue.models_in_want() == frozenset()
    _offer(scheduler, _request("b1"))
    assert scheduler.queue.models_in_want() == {"b"}, "the first that waits"
    assert _dispatch(scheduler, _only()) == []
    assert scheduler.queue.models_in_want() == frozenset()
    scheduler.queue.release(RequestId("b0"), 1)
    assert scheduler.queue.models_in_want() == {"b"}, "one has ended"
    assert _dispatch(scheduler, _only()) == []
    scheduler.set_capacities({"b": _FREE})
    assert scheduler.queue.models_in_want() == {"b"}, "workers have changed"
    assert scheduler.queue.withdraw(RequestId("b1"))
    assert scheduler.queue.models_in_want() == frozenset(), "nothing waits"


def test_there_is_no_other_round_when_no_model_could_use_it(clock: VirtualClock) -> None:
    scheduler, asked = _scheduler(clock), list[str]()
    _offer(scheduler, _request("a1"))

    def place(request: QueuedRequest) -> Fit:
        asked.append(request.request_id)
        return Fit.FULL

    assert _dispatch(scheduler, place) == []
    assert asked == ["a1"]


def test_the_rounds_end_even_when_models_have_a_place_by_turns(clock: VirtualClock) -> None:
    scheduler, asked = _scheduler(clock), list[str]()
    scheduler.set_capacities({})
    _offer(scheduler, _request("a1"), _request("b1"))

    def probe(request: QueuedRequest) -> Fit:
        asked.append(request.request_id)
        assert len(asked) < 20
        return Fit.PLACED if len(asked) % 4 < 2 else Fit.FULL

    assert _dispatch(scheduler, _placed, probe) == []
    assert asked == ["a1", "b1"] * 3


def test_a_model_that_hands_nothing_over_is_held_up_by_no_link(clock: VirtualClock) -> None:
    scheduler = _scheduler(clock, kv_io_bytes_per_second=10.0)
    scheduler.set_capacities({"a": Capacity(9, 1.0, hands_over=True), "b": _FREE})
    _offer(scheduler, _request("a1", prompt=100))
    assert _dispatch(scheduler) == ["a1"]
    _offer(scheduler, _request("a2"), _request("b1"))
    assert _dispatch(scheduler) == ["b1"]
    assert scheduler.queue.of("a").ended_by == "KV I/O"
    assert scheduler.queue.next_turn() == 19.0, "a second was saved up"
