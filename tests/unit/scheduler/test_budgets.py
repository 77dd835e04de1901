from dataclasses import replace

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId, background_of
from llmserve.scheduler.budgets import KvIoBudget, RequestBudget, Spend, TokenBudget, choices_refusal
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.resources import Capacity, ClusterLimits, Resources
from llmserve.scheduler.tenant_budgets import (
    TenantLimit,
    TenantLimits,
    TenantRateBudget,
    TenantRequestBudget,
)


def _request(
    name: str, tenant: str = "t", prompt: int = 0, expected: int = 0, choices: int = 1
) -> QueuedRequest:
    return QueuedRequest(
        RequestId(name),
        TenantId(tenant),
        0.0,
        1.0,
        prompt_tokens=prompt,
        expected_output_tokens=expected,
        choices=choices,
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
    budget = RequestBudget(8)
    assert budget.refusal(_request("a", choices=9)) == "", "nothing is known of engines"
    budget.set_limit(8, 4, "engine.max_decode_concurrency")
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
    resources.set_capacity(Capacity(requests=engines[0], widest_engine=engines[1]))
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
    budget.set_limit(1)
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


# -- KV I/O


def test_kv_is_handed_over_at_the_rate(clock: VirtualClock) -> None:
    """10 bytes a token, 1,000 bytes a second: 100 tokens take a second, and one second is saved up."""
    budget = KvIoBudget(clock)
    budget.set_limit(1000.0, 10.0)
    budget.reserve(_request("a", prompt=100))
    assert budget.fits(_request("b"))
    budget.reserve(_request("b", prompt=300))
    assert not budget.fits(_request("c"))
    assert budget.wait(_request("c"), 5).seconds == pytest.approx(3.0)
    assert budget.wait(_request("c"), 5).sure
    budget.release(_request("a"), 0)
    clock.advance(2.9)
    assert not budget.fits(_request("c"))
    clock.advance(0.1)
    assert budget.fits(_request("c"))


def test_workers_that_do_both_move_no_kv(clock: VirtualClock) -> None:
    resources = Resources(clock, ClusterLimits(kv_io_bytes_per_second=1.0))
    for hands_over in (False, True):
        resources.set_capacity(Capacity(9, 10.0, hands_over))
        name = str(hands_over)
        for half in "ab":
            resources.kv_io.reserve(_request(name + half, prompt=100))
        assert resources.kv_io.fits(_request("c")) is not hands_over


def test_a_rate_is_kept_over_any_time() -> None:
    spend, now, begun = Spend(), 0.0, 0.0
    while now < 30.0:
        while not spend.wait_seconds(now):
            spend.take(0.25, now)
            begun += 0.25
        assert begun <= now + Spend.burst_seconds + 0.25 + 1e-6
        now += 0.1
    assert begun >= 30.0


# -- HBM


def test_hbm_counts_the_cached_tokens_too(clock: VirtualClock) -> None:
    resources = Resources(clock, ClusterLimits(max_tokens_in_flight=400, hbm_bytes=8000.0))
    assert (resources.hbm.limit_tokens, resources.kv_token_price) == (None, 0.0)  # no model is known yet
    resources.set_capacity(Capacity(9, kv_bytes_per_token=10.0))
    assert resources.hbm.limit_tokens == 800
    assert resources.kv_token_price == 0.5
    cached = QueuedRequest(RequestId("a"), TenantId("t"), 0.0, 1.0, prompt_tokens=300, cached_tokens=200)
    for budget in resources.cluster:
        budget.reserve(cached)
    assert (resources.tokens.in_flight_tokens, resources.hbm.in_flight_tokens) == (100, 300)


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


def test_the_link_is_busy_for_as_long_as_its_bytes_take(clock: VirtualClock) -> None:
    link = KvIoBudget(clock)
    assert (link.used_ratio, link.wait(_request("a"), 0).seconds, link.snapshot()) == (None, 0.0, None)
    link.set_limit(1000.0, 10.0)
    assert link.used_ratio == 0.0
    link.reserve(_request("a", prompt=150))  # 1.5 s of the link, of which 1 s was saved up
    assert link.used_ratio == 1.5
    assert (link.fits(_request("b")), link.wait(_request("b"), 3).sure) == (False, True)
    assert link.wait(_request("b"), 3).seconds == pytest.approx(0.5)
    assert link.snapshot() == pytest.approx(0.5)
    clock.advance(0.5)
    assert link.fits(_request("b"))
    link.release(_request("a"), 0)
    assert link.used_ratio == pytest.approx(1.0), "what has moved has moved"
    clock.advance(7.0)
    assert (link.used_ratio, link.snapshot()) == (0.0, None)


def test_what_an_earlier_router_sent_takes_no_time_again(clock: VirtualClock) -> None:
    link = KvIoBudget(clock)
    link.set_limit(1000.0, 10.0)
    link.reserve(replace(_request("a", prompt=150), charged=True))
    assert link.used_ratio == 0.0


def test_a_spend_that_is_restored_is_where_it_was() -> None:
    spend = Spend()
    assert spend.ahead_seconds(10.0) is None
    spend.take(3.0, 10.0)
    assert spend.ahead_seconds(10.0) == 2.0
    assert Spend.restored(2.0, 50.0).wait_seconds(50.0) == 2.0
    assert Spend.restored(None, 50.0).ahead_seconds(50.0) is None
    assert Spend.restored(1e-6, 0.0).wait_seconds(0.0) == 0.0, "a microsecond is no wait"
    spend.give_back(0.5)
    assert (spend.wait_seconds(10.0), spend.used_seconds(10.0)) == (1.5, 2.5)
    assert spend.wait_seconds(11.5) == 0.0
    assert spend.ahead_seconds(12.5) is None, "all is saved up again"


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
    assert (resources.hbm.limit_tokens, resources.kv_token_price) == (None, 0.0)
    resources.set_capacity(Capacity(requests=3, kv_bytes_per_token=10.0, hands_over=True))
    assert (resources.hbm.limit_tokens, resources.kv_token_price) == (100, 0.5)
    assert resources.requests.limit_requests == 3
    resources.hbm.reserve(_request("a", prompt=7))
    assert resources.kv_bytes_in_flight == 70.0
    resources.set_limits(ClusterLimits(max_requests_in_flight=2))
    assert (resources.requests.limit_requests, resources.hbm.limit_tokens) == (2, None)


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
    assert (resources.requests.limit_requests, resources.tokens.limit_tokens) == (3, 5)


def test_where_two_limits_of_the_choices_are_equal_the_engine_s_is_named(clock: VirtualClock) -> None:
    resources = Resources(clock, ClusterLimits(max_requests_in_flight=2))
    resources.set_capacity(Capacity(requests=9, widest_engine=2))
    assert "engine.max_decode_concurrency allows 2" in resources.requests.refusal(_request("a", choices=3))


def test_a_limit_of_requests_alone_refuses_no_choices() -> None:
    budget = RequestBudget(1)
    budget.set_limit(9)
    assert budget.refusal(_request("a", choices=2)) == ""


def test_a_background_flow_has_the_limits_of_its_tenant_or_its_own() -> None:
    red, each, own, tighter = TenantId("red"), TenantLimit(1), TenantLimit(2), TenantLimit(3)
    assert TenantLimits(each).of(background_of(red)) is each
    assert TenantLimits(each, {red: own}).of(background_of(red)) is own
    limits = TenantLimits(each, {red: own, background_of(red): tighter})
    assert (limits.of(background_of(red)), limits.of(red)) == (tighter, own)
