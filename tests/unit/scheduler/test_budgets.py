from typing import Any

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId, background_of
from llmserve.scheduler.budgets import RequestBudget, TokenBudget, choices_refusal
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.resources import BudgetSet, ClusterLimits, Resources
from llmserve.scheduler.tenant_budgets import (
    TenantLimit,
    TenantLimits,
    TenantRateBudget,
    TenantRequestBudget,
)


def _request(
    name: str, tenant: str = "t", prompt: int = 0, expected: int = 0, choices: int = 1, model: str = ""
) -> QueuedRequest:
    return QueuedRequest(
        RequestId(name),
        TenantId(tenant),
        0.0,
        1.0,
        prompt_tokens=prompt,
        expected_output_tokens=expected,
        choices=choices,
        model=model,
    )


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(50.0)


# -- requests


def test_fits_until_the_limit() -> None:
    budget = RequestBudget(1)
    assert budget.fits(_request("a"))
    budget.reserve(_request("a"))
    assert not budget.fits(_request("b"))
    budget.correct(_request("a"), 7)
    budget.release(_request("a"), 7)
    assert budget.fits(_request("b"))


def test_each_choice_counts() -> None:
    budget = RequestBudget(4)
    three = _request("a", choices=3)
    budget.reserve(three)
    assert budget.in_flight == 3
    assert budget.fits(_request("b"))
    assert not budget.fits(_request("b", choices=2))
    budget.release(three, 7)
    assert budget.in_flight == 0
    budget.check_integrity(set())


def test_more_choices_than_there_can_be_are_refused_with_field_and_limit() -> None:
    assert RequestBudget(8).refusal(_request("a", choices=9)) == "", "nothing is known of engines"
    budget = RequestBudget(8, most_choices=lambda _: (4, "engine.max_decode_concurrency"))
    assert budget.refusal(_request("a", choices=4)) == ""
    assert budget.refusal(_request("a", choices=5)) == (
        "n: the 5 choices of a request run side by side, and engine.max_decode_concurrency allows 4"
    )


@pytest.mark.parametrize(
    ("budget", "engines", "setting", "allowed"),
    [
        (None, (128, 64), "engine.max_decode_concurrency", 64),
        (100, (128, 64), "engine.max_decode_concurrency", 64),
        (10, (128, 64), "budgets.max_requests_in_flight", 10),
        (10, (0, 0), "budgets.max_requests_in_flight", 10),
    ],
)
def test_the_least_of_what_limits_the_choices_is_named(
    clock: VirtualClock, budget: int | None, engines: tuple[int, int], setting: str, allowed: int
) -> None:
    resources = Resources(clock, ClusterLimits(max_requests_in_flight=budget))
    resources.set_capacities({"": Capacity(requests=engines[0], widest_engine=engines[1])})
    assert resources.requests.refusal(_request("a", choices=allowed)) == ""
    refusal = resources.requests.refusal(_request("a", choices=allowed + 1))
    assert refusal.endswith(f"{setting} allows {allowed}")


def test_a_tenant_s_choices_count_against_what_it_may_run(clock: VirtualClock) -> None:
    budget = TenantRequestBudget(clock)
    budget.limits = TenantLimits(TenantLimit(max_requests_in_flight=3))
    two = _request("a", choices=2)
    budget.reserve(two)
    assert budget.fits(_request("b"))
    assert not budget.fits(_request("b", choices=2))
    assert budget.fits(_request("b", tenant="other", choices=3))
    assert "max_requests_in_flight allows 3" in budget.refusal(_request("b", choices=4))
    budget.check_integrity({two.request_id})
    budget.release(two, 1)
    assert budget.fits(_request("b", choices=3))


def test_a_smaller_limit_takes_nothing_back() -> None:
    budget = RequestBudget(2)
    budget.reserve(_request("a"))
    budget.reserve(_request("b"))
    budget.set_limit(1, {})
    assert budget.in_flight == 2
    budget.release(_request("a"), 7)
    assert not budget.fits(_request("c"))


def test_unbalanced_use_is_a_bug() -> None:
    budget = RequestBudget(2)
    budget.reserve(_request("a"))
    with pytest.raises(AssertionError):
        budget.reserve(_request("a"))
    budget.release(_request("a"), 7)
    with pytest.raises(KeyError):
        budget.release(_request("a"), 7)


# -- tokens


@pytest.fixture
def tokens(clock: VirtualClock) -> TokenBudget:
    budget = TokenBudget(clock, "tokens in flight", "budgets.x", QueuedRequest.work_tokens)
    budget.set_limit(100)
    return budget


def test_tokens_are_reserved_as_expected_and_grow_with_the_answer(tokens: TokenBudget) -> None:
    request = _request("a", prompt=30, expected=20)
    tokens.reserve(request)
    tokens.correct(request, 10)
    assert tokens.in_flight_tokens == 50  # not over: it may still generate the rest
    tokens.correct(request, 35)
    assert tokens.in_flight_tokens == 65
    assert tokens.fits(_request("b", prompt=35))
    assert not tokens.fits(_request("b", prompt=36))
    tokens.release(request, 35)
    assert tokens.in_flight_tokens == 0


def test_what_can_never_fit_is_told_why(tokens: TokenBudget) -> None:
    assert tokens.refusal(_request("a", prompt=100)) == ""
    words = "tokens in flight: the request needs 101, and budgets.x allows 100"
    assert tokens.refusal(_request("a", prompt=101)) == words
    tokens.set_limit(None)
    assert tokens.refusal(_request("a", prompt=101)) == ""


def test_the_wait_for_tokens_is_that_of_their_release(clock: VirtualClock, tokens: TokenBudget) -> None:
    """10 tokens come back each second; 40 are missing."""
    for number in range(13):
        tokens.reserve(_request(str(number), prompt=10))
    for number in range(3):
        clock.advance(1.0)
        tokens.release(_request(str(number), prompt=10), 0)
    assert tokens.wait(_request("a", prompt=40), 0).seconds == pytest.approx(4.0)
    assert not tokens.wait(_request("a", prompt=40), 0).sure
    tokens.release(_request("3", prompt=10), 0)
    assert tokens.wait(_request("a", prompt=10), 0).seconds == 0.0


# -- HBM


def test_hbm_counts_the_cached_tokens_too(clock: VirtualClock) -> None:
    resources = Resources(clock, ClusterLimits(max_tokens_in_flight=400, hbm_bytes=8000.0))
    assert (resources.hbm.limit_tokens(""), resources.kv_token_price("")) == (
        None,
        0.0,
    )  # no model is known yet
    resources.set_capacities({"": Capacity(9, kv_bytes_per_token=10.0)})
    assert resources.hbm.limit_tokens("") == 800
    assert resources.kv_token_price("") == 0.5
    cached = QueuedRequest(RequestId("a"), TenantId("t"), 0.0, 1.0, prompt_tokens=300, cached_tokens=200)
    for budget in resources.cluster:
        budget.reserve(cached)
    assert (resources.tokens.in_flight_tokens, resources.hbm.in_flight_tokens) == (100, 300)


def test_workers_that_do_both_move_no_kv(clock: VirtualClock) -> None:
    resources = Resources(clock, ClusterLimits(kv_io_bytes_per_second=1.0))
    for hands_over in (False, True):
        resources.set_capacities({"": Capacity(9, 10.0, hands_over)})
        name = str(hands_over)
        for half in "ab":
            resources.kv_io.reserve(_request(name + half, prompt=100))
        assert resources.kv_io.fits(_request("c")) is not hands_over


# -- tenants


def test_a_tenant_s_requests_in_flight(clock: VirtualClock) -> None:
    budget = TenantRequestBudget(clock)
    budget.limits = TenantLimits(TenantLimit(max_requests_in_flight=1), {TenantId("free"): TenantLimit()})
    for name, tenant in (("a", "t"), ("b", "free"), ("c", "free")):
        assert budget.fits(_request(name, tenant))
        budget.reserve(_request(name, tenant))
    assert not budget.fits(_request("d"))
    assert budget.wait(_request("d"), 3).seconds == float("inf")  # none has ended yet
    budget.release(_request("a"), 0)
    assert budget.fits(_request("d"))
    budget.check_integrity({RequestId("b"), RequestId("c")})


def test_the_wait_for_a_tenant_s_own_requests(clock: VirtualClock) -> None:
    """Two at a time, one ends each second; three wait already."""
    budget = TenantRequestBudget(clock)
    budget.limits = TenantLimits(TenantLimit(max_requests_in_flight=2))
    budget.reserve(_request("0"))
    for number in range(1, 5):
        budget.reserve(_request(str(number)))
        clock.advance(1.0)
        budget.release(_request(str(number - 1)), 0)
    budget.reserve(_request("5"))
    assert budget.wait(_request("6"), 3).seconds == pytest.approx(4.0)


def test_a_tenant_s_rate_is_settled_with_what_was_used(clock: VirtualClock) -> None:
    budget = TenantRateBudget(clock, "x", QueuedRequest.work_tokens, lambda limit: limit.tokens_per_second)
    budget.limits = TenantLimits(TenantLimit(tokens_per_second=100.0))
    request = _request("a", prompt=100, expected=300)
    budget.reserve(request)
    assert budget.wait(_request("b", prompt=50), 2).seconds == pytest.approx(3.0 + 2 * 0.5)
    budget.correct(request, 400)
    assert budget.wait(_request("b"), 0).seconds == pytest.approx(4.0)
    budget.release(request, 200)
    assert budget.wait(_request("b"), 0).seconds == pytest.approx(2.0)
    assert budget.fits(_request("b", "other"))
    clock.advance(2.0)
    assert budget.fits(_request("b"))


# -- figures and defaults


def test_used_shares(clock: VirtualClock) -> None:
    assert RequestBudget(0).used_ratio is None
    requests = RequestBudget(4)
    requests.reserve(_request("a", choices=3))
    assert requests.used_ratio == 0.75
    tokens = TokenBudget(clock, "tokens", "budgets.x", QueuedRequest.work_tokens)
    tokens.set_limit(400)
    tokens.reserve(_request("a", prompt=90, expected=10))
    assert tokens.used_ratio == 0.25


def test_what_fits_exactly_fits(clock: VirtualClock) -> None:
    tokens = TokenBudget(clock, "tokens", "budgets.x", QueuedRequest.work_tokens)
    tokens.set_limit(100)
    assert tokens.fits(_request("a", prompt=100))
    assert not tokens.fits(_request("a", prompt=101))
    assert (tokens.refusal(_request("a", prompt=100)), tokens.wait(_request("a"), 0).seconds) == ("", 0.0)
    assert tokens.refusal(_request("a", prompt=101)) == (
        "tokens: the request needs 101, and budgets.x allows 100"
    )
    assert "needs 101 for its 2 choices (n)," in tokens.refusal(_request("a", prompt=101, choices=2))


def test_a_reservation_grows_and_never_shrinks_before_the_end(clock: VirtualClock) -> None:
    tokens = TokenBudget(clock, "tokens", "budgets.x", QueuedRequest.work_tokens)
    request = _request("a", prompt=90, expected=10)
    tokens.reserve(request)
    held = []
    for output in (5, 30, 20):
        tokens.correct(request, output)
        held.append(tokens.in_flight_tokens)
    assert held == [100, 120, 120]
    tokens.release(request, 20)
    assert tokens.in_flight_tokens == 0


def test_the_wait_for_a_rate_counts_those_that_come_first(clock: VirtualClock) -> None:
    rate = TenantRateBudget(clock, "rate", QueuedRequest.work_tokens, lambda limit: limit.tokens_per_second)
    rate.limits = TenantLimits(TenantLimit(tokens_per_second=100.0))
    assert rate.wait(_request("a"), 5).seconds == 0.0
    rate.reserve(_request("a", prompt=300))
    wait = rate.wait(_request("b", prompt=50), 2)
    assert wait.sure
    assert wait.seconds == pytest.approx(2.0 + 2 * 0.5)
    rate.correct(_request("a", prompt=300), 100)
    assert rate.wait(_request("b", prompt=50), 0).seconds == pytest.approx(3.0)
    rate.release(_request("a", prompt=300), 0)
    assert rate.wait(_request("b", prompt=50), 0).seconds == pytest.approx(2.0)
    other = _request("c", tenant="other")
    assert rate.fits(other)


def test_the_hbm_limit_needs_the_size_of_a_token(clock: VirtualClock) -> None:
    resources = Resources(clock, ClusterLimits(max_tokens_in_flight=50, hbm_bytes=1000.0))
    assert (resources.hbm.limit_tokens(""), resources.kv_token_price("")) == (None, 0.0)
    resources.set_capacities({"": Capacity(requests=3, kv_bytes_per_token=10.0, hands_over=True)})
    assert (resources.hbm.limit_tokens(""), resources.kv_token_price("")) == (100, 0.5)
    assert resources.requests.fits(_request("a", choices=3))
    assert not resources.requests.fits(_request("a", choices=4))
    resources.hbm.reserve(_request("a", prompt=7))
    assert resources.kv_bytes_in_flight == 70.0
    resources.set_limits(ClusterLimits(max_requests_in_flight=2))
    assert (resources.requests.limit_requests, resources.hbm.limit_tokens("")) == (2, None)


def test_a_wait_for_tokens_does_not_count_the_time_when_none_was_held(clock: VirtualClock) -> None:
    budget = TokenBudget(clock, "tokens", "most", QueuedRequest.context_tokens)
    budget.set_limit(10)
    first, second = _request("a", prompt=10), _request("b", prompt=10)
    budget.reserve(first)
    clock.advance(2.0)
    budget.release(first, 0)
    clock.advance(10.0)  # nobody holds any
    budget.reserve(second)
    assert budget.wait(_request("c", prompt=10), 0).seconds == 2.0


@pytest.mark.parametrize(
    ("choices", "most", "is_refused"),
    [(2, 0, False), (1, 0, False), (2, 1, True), (1, 1, False), (2, 2, False), (3, 2, True)],
)
def test_too_many_choices_are_refused_where_the_limit_is_known(
    choices: int, most: int, is_refused: bool
) -> None:
    assert bool(choices_refusal(_request("a", choices=choices), most, "a setting")) is is_refused


def test_limits_hold_before_any_worker_has_come(clock: VirtualClock) -> None:
    resources = Resources(clock, ClusterLimits(max_requests_in_flight=3, max_tokens_in_flight=5))
    assert (resources.requests.limit_requests, resources.tokens.limit_tokens("")) == (3, 5)


def test_where_two_limits_of_the_choices_are_equal_the_engine_s_is_named(clock: VirtualClock) -> None:
    resources = Resources(clock, ClusterLimits(max_requests_in_flight=2))
    resources.set_capacities({"": Capacity(requests=9, widest_engine=2)})
    assert "engine.max_decode_concurrency allows 2" in resources.requests.refusal(_request("a", choices=3))


def test_a_limit_of_requests_alone_refuses_no_choices() -> None:
    budget = RequestBudget(1)
    budget.set_limit(9, {})
    assert budget.refusal(_request("a", choices=2)) == ""


def test_tenants_that_have_saved_up_all_are_forgotten(clock: VirtualClock) -> None:
    """An issuer of tokens may name any number of tenants. What one still has in flight is settled."""
    rate = TenantRateBudget(clock, "rate", QueuedRequest.work_tokens, lambda limit: limit.tokens_per_second)
    rate.limits = TenantLimits(TenantLimit(tokens_per_second=100.0))
    first = _request("first", "first", prompt=1)
    rate.reserve(first)
    for number in range(5000):
        clock.advance(1.0)
        one = _request(f"r{number}", f"tenant-{number}", prompt=1)
        rate.reserve(one)
        rate.release(one, 0)
    assert len(rate._spends) < 1200
    assert rate.fits(_request("second", "first"))
    rate.correct(first, 1000)
    assert not rate.fits(_request("second", "first"))
    rate.release(first, 0)
    assert rate.fits(_request("second", "first"))


def test_a_background_flow_has_the_limits_of_its_tenant_or_its_own() -> None:
    red, each, own, tighter = TenantId("red"), TenantLimit(1), TenantLimit(2), TenantLimit(3)
    assert TenantLimits(each).of(background_of(red)) is each
    assert TenantLimits(each, {red: own}).of(background_of(red)) is own
    limits = TenantLimits(each, {red: own, background_of(red): tighter})
    assert (limits.of(background_of(red)), limits.of(red)) == (tighter, own)


# -- several models


def _models(clock: VirtualClock, **limits: Any) -> Resources:
    """Of `large` a token takes 40 bytes, and its engines run 3 requests; of `small` 10 bytes, and 5."""
    resources = Resources(clock, ClusterLimits(**limits))
    large, small = Capacity(3, 40.0, hands_over=True, widest_engine=2), Capacity(5, 10.0, widest_engine=5)
    resources.set_capacities({"large": large, "small": small})
    return resources


def test_each_model_runs_as_many_requests_as_its_own_engines(clock: VirtualClock) -> None:
    requests = _models(clock).requests
    assert not requests.fits(_request("x", model="unknown"))
    requests.reserve(_request("a", choices=3, model="large"))
    assert not requests.fits(_request("b", model="large"))
    assert not requests.full_for_all(_request("b", model="large"))
    assert requests.fits(_request("c", choices=5, model="small"))
    assert not requests.fits(_request("c", choices=6, model="small"))
    assert "max_decode_concurrency allows 2" in requests.refusal(_request("d", choices=3, model="large"))
    assert requests.refusal(_request("d", choices=3, model="small")) == ""
    assert (requests.used_ratio, requests.held_ratio("large")) == (3 / 8, 0.0)
    requests.check_integrity({RequestId("a")})


def test_a_limit_of_requests_is_for_all_models_together(clock: VirtualClock) -> None:
    requests = _models(clock, max_requests_in_flight=4).requests
    requests.reserve(_request("a", choices=3, model="large"))
    assert requests.fits(_request("b", model="small"))
    assert requests.fits(_request("b", model="large"))
    assert requests.full_for_all(_request("b", choices=2, model="small"))
    assert not requests.full_for_all(_request("b", choices=1, model="small"))
    assert not requests.fits(_request("b", choices=2, model="small"))
    assert (requests.held_ratio("large"), requests.held_ratio("small")) == (0.75, 0.0)
    requests.release(_request("a", choices=3, model="large"), 0)
    assert requests.held_ratio("large") == 0.0


def test_the_kv_of_each_model_has_its_own_size(clock: VirtualClock) -> None:
    resources = _models(clock, hbm_bytes=1000.0, max_tokens_in_flight=50)
    hbm = resources.hbm
    assert (hbm.limit_tokens("large"), hbm.limit_tokens("small"), hbm.limit_tokens("none")) == (25, 100, None)
    assert (resources.kv_token_price("large"), resources.kv_token_price("small")) == (2.0, 0.5)
    hbm.reserve(_request("a", prompt=20, model="large"))  # 800 bytes
    assert hbm.used_ratio == 0.8
    assert (hbm.held_ratio("large"), hbm.held_ratio("small")) == (0.8, 0.0)
    assert hbm.fits(_request("b", prompt=20, model="small"))
    assert not hbm.fits(_request("b", prompt=21, model="small"))
    assert hbm.full_for_all(_request("b", prompt=21, model="small"))
    assert hbm.fits(_request("b", prompt=10**6, model="none")), "nobody knows what its KV takes"
    assert not hbm.full_for_all(_request("b", prompt=10**6, model="none"))
    assert "needs 26, and budgets.hbm_gb allows 25" in hbm.refusal(_request("b", prompt=26, model="large"))
    assert hbm.refusal(_request("b", prompt=26, model="small")) == ""
    hbm.reserve(_request("b", prompt=7, model="small"))
    assert (hbm.in_flight_tokens, hbm.in_flight_of("large"), resources.kv_bytes_in_flight) == (27, 20, 870.0)


def test_the_kv_of_a_model_keeps_its_size_when_its_workers_are_gone(clock: VirtualClock) -> None:
    resources = _models(clock, hbm_bytes=1000.0)
    resources.hbm.reserve(_request("a", prompt=20, model="large"))
    resources.set_capacities({"small": Capacity(5, 10.0)})
    assert resources.kv_bytes_in_flight == 800.0
    assert not resources.requests.fits(_request("b", model="large"))
    assert not resources.hbm.fits(_request("b", prompt=21, model="small"))


def test_the_wait_counts_bytes_where_models_differ(clock: VirtualClock) -> None:
    hbm = _models(clock, hbm_bytes=1000.0).hbm
    first, second = _request("a", prompt=10, model="large"), _request("b", prompt=60, model="small")
    hbm.reserve(first)
    hbm.reserve(second)
    clock.advance(2.0)
    hbm.release(first, 0)  # 400 bytes in 2 s
    assert hbm.wait(_request("c", prompt=20, model="large"), 0).seconds == pytest.approx(2.0)
    assert hbm.wait(_request("c", prompt=50, model="small"), 0).seconds == pytest.approx(0.5)
    assert hbm.wait(_request("c", prompt=40, model="small"), 0).seconds == 0.0


def test_only_models_that_hand_over_take_time_of_the_link(clock: VirtualClock) -> None:
    link = _models(clock, kv_io_bytes_per_second=100.0).kv_io
    link.reserve(_request("a", prompt=1000, model="small"))
    assert link.used_ratio == 0.0
    link.reserve(_request("b", prompt=5, model="large"))  # 200 bytes: 2 s, of which 1 s was saved up
    assert link.used_ratio == 2.0
    assert not link.fits(_request("c", model="large"))
    assert not link.full_for_all(_request("c", model="large")), "the other model has room"
    assert link.fits(_request("c", model="small"))
    assert link.held_ratio("large") == 0.0


@pytest.mark.parametrize("waits", [True, False])
def test_a_model_has_its_share_while_others_wait_and_all_otherwise(clock: VirtualClock, waits: bool) -> None:
    resources = _models(clock, max_tokens_in_flight=100, max_requests_in_flight=4, shares={"large": 0.5})
    resources.shares.waiting = lambda: frozenset({"large", "small"} if waits else {"large"})
    tokens, requests = resources.tokens, resources.requests
    for budget in resources.cluster:
        budget.reserve(_request("a", prompt=30, model="large"))
    assert tokens.fits(_request("b", prompt=20, model="large"))
    assert tokens.fits(_request("b", prompt=21, model="large")) is not waits
    assert not tokens.full_for_all(_request("b", prompt=21, model="large"))
    assert tokens.fits(_request("b", prompt=70, model="small"))
    assert requests.fits(_request("b", model="large"))
    assert requests.fits(_request("b", choices=2, model="large")) is not waits
    assert requests.fits(_request("b", choices=3, model="small"))
    assert tokens.full_for_all(_request("b", prompt=71, model="large"))
    assert resources.held_of_share("large") == 0.6
    assert resources.held_of_share("small") == 0.0


def test_the_share_of_a_model_in_hbm_is_one_of_bytes(clock: VirtualClock) -> None:
    resources = _models(clock, hbm_bytes=1000.0, shares={"large": 0.5})
    resources.shares.waiting = lambda: frozenset({"small"})
    resources.hbm.reserve(_request("a", prompt=5, model="large"))  # 200 bytes
    assert resources.hbm.fits(_request("b", prompt=7, model="large"))
    assert not resources.hbm.fits(_request("b", prompt=8, model="large"))
    assert not resources.hbm.full_for_all(_request("b", prompt=8, model="large"))


def test_a_request_larger_than_its_model_s_share_runs_when_the_model_holds_nothing(
    clock: VirtualClock,
) -> None:
    resources = _models(clock, max_tokens_in_flight=100, max_requests_in_flight=4, shares={"large": 0.25})
    resources.shares.waiting = lambda: frozenset({"small"})
    large = _request("a", prompt=90, choices=3, model="large")
    assert resources.tokens.fits(large)
    assert resources.requests.fits(large)
    for budget in resources.cluster:
        budget.reserve(large)
    assert not resources.tokens.fits(_request("b", prompt=1, model="large"))
    assert not resources.requests.fits(_request("b", model="large"))


def test_the_wait_for_a_share_is_that_of_what_the_model_holds_too_much(clock: VirtualClock) -> None:
    resources = _models(clock, max_tokens_in_flight=100, shares={"large": 0.5})
    resources.shares.waiting = lambda: frozenset({"small"})
    tokens, first = resources.tokens, _request("a", prompt=10, model="large")
    tokens.reserve(first)
    tokens.reserve(_request("b", prompt=40, model="large"))
    clock.advance(1.0)
    tokens.release(first, 0)  # 10 tokens a second
    assert tokens.wait(_request("c", prompt=15, model="large"), 0).seconds == pytest.approx(0.5)


def test_of_the_budgets_that_have_no_room_one_that_is_full_for_all_is_named(clock: VirtualClock) -> None:
    resources = _models(clock, max_tokens_in_flight=100)
    budgets = BudgetSet(resources.cluster, resources.own)
    running = _request("a", prompt=60, choices=3, model="large")
    for budget in resources.cluster:
        budget.reserve(running)
    assert budgets.full_in_cluster(_request("b", prompt=10, model="small")) is None
    assert budgets.full_in_cluster(_request("b", prompt=10, model="large")) is resources.requests
    assert budgets.full_in_cluster(_request("b", prompt=50, model="large")) is resources.tokens


def test_a_request_that_fits_exactly_has_no_wait_before_anything_has_ended(clock: VirtualClock) -> None:
    tokens = TokenBudget(clock, "tokens", "budgets.x", QueuedRequest.work_tokens)
    tokens.set_limit(100)
    tokens.reserve(_request("a", prompt=60))
    assert tokens.wait(_request("b", prompt=40), 0).seconds == 0.0
    assert tokens.wait(_request("b", prompt=41), 0).seconds == float("inf")


def test_the_used_part_is_known_when_the_size_of_one_model_is(clock: VirtualClock) -> None:
    tokens = TokenBudget(clock, "tokens", "budgets.x", QueuedRequest.context_tokens)
    tokens.set_limit(100.0, {"a": 0.0})
    assert tokens.used_ratio is None
    tokens.set_limit(100.0, {"a": 0.0, "b": 5.0})
    tokens.reserve(_request("a", prompt=4, model="a"))
    tokens.reserve(_request("b", prompt=4, model="b"))
    assert tokens.used_ratio == 0.2
