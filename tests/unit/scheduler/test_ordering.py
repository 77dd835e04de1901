"""Shortest first within a tenant, and the bound of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.ids import RequestId, TenantId
from llmserve.core.request import MOST_PRIORITY
from llmserve.scheduler.ordering import OutputEstimates, ShortestFirst
from llmserve.scheduler.request import QueuedRequest

TENANT = TenantId("t")


def _request(
    arrived_at: float, tokens: int, priority: int = 0, timeout: float = 1000.0, cached: int = 0
) -> QueuedRequest:
    return QueuedRequest(
        RequestId("r"), TENANT, arrived_at, arrived_at + timeout, tokens, 0, priority, cached
    )


def test_the_shorter_of_two_goes_first_unless_it_comes_too_late() -> None:
    key = ShortestFirst(seconds_per_1000_tokens=5.0, aging_seconds=20.0).key
    assert key(_request(0.0, 3000)) == 15.0
    assert key(_request(14.0, 100)) == 14.5
    assert key(_request(15.0, 100)) == 15.5
    assert key(_request(0.0, 50_000)) == 20.0


def test_cached_tokens_are_no_work() -> None:
    key = ShortestFirst(seconds_per_1000_tokens=5.0, aging_seconds=20.0).key
    assert key(_request(0.0, 3000, cached=2000)) == 5.0


def test_priority_counts_in_seconds_and_within_bounds() -> None:
    key = ShortestFirst(priority_seconds=5.0).key
    assert key(_request(100.0, 0, priority=2)) - key(_request(100.0, 0)) == 10.0
    assert key(_request(100.0, 0, priority=-1)) - key(_request(100.0, 0)) == -5.0
    assert key(_request(100.0, 0, priority=-(10**9))) == key(_request(100.0, 0, priority=-10))


def test_a_request_queues_by_its_deadline_when_that_is_sooner() -> None:
    key = ShortestFirst().key
    assert key(_request(0.0, 50_000, timeout=3.0)) == 3.0


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(), st.integers(), st.floats(0.1, 500))
@settings(max_examples=200, deadline=None, database=None)
def test_nothing_is_overtaken_by_what_comes_later_than_the_bound(
    tokens: int, other_tokens: int, priority: int, other_priority: int, timeout: float
) -> None:
    ordering = ShortestFirst()
    waits = ordering.key(_request(0.0, tokens, priority, timeout))
    later = ordering.aging_seconds + 2 * MOST_PRIORITY * ordering.priority_seconds + 0.001
    assert waits < ordering.key(_request(later, other_tokens, other_priority))
    later = ordering.aging_seconds + 0.001  # of the same priority
    assert ordering.key(_request(0.0, tokens)) < ordering.key(_request(later, other_tokens))


def test_expected_output_follows_what_the_tenant_s_requests_generated() -> None:
    estimates = OutputEstimates()
    request = _request(0.0, 10)
    assert estimates.expected(request) == 256
    for _ in range(60):
        estimates.learn(TENANT, 40)
        estimates.learn(TENANT, 0)  # given up: says nothing
    assert estimates.expected(request) == 40
    for _ in range(60):
        estimates.learn(TENANT, 1000)
    assert estimates.expected(request) == pytest.approx(1000, rel=0.05)
    bounded = QueuedRequest(RequestId("b"), TENANT, 0.0, 1.0, 10, max_output_tokens=16)
    assert estimates.expected(bounded) == 16


def test_each_choice_is_expected_to_generate_what_a_request_does() -> None:
    estimates = OutputEstimates()
    estimates.learn(TENANT, 100)
    four = QueuedRequest(RequestId("a"), TENANT, 0.0, 1.0, 10, choices=4)
    assert estimates.expected(four) == 400
    bounded = QueuedRequest(RequestId("b"), TENANT, 0.0, 1.0, 10, max_output_tokens=80, choices=4)
    assert estimates.expected(bounded) == 80


def test_an_answer_of_one_token_is_expected_to_have_one() -> None:
    estimates = OutputEstimates()
    estimates.learn(TENANT, 1)
    assert estimates.expected(_request(0.0, 10)) == 1


def test_the_latest_answer_counts_a_sixteenth() -> None:
    estimates = OutputEstimates()
    estimates.learn(TENANT, 16)
    estimates.learn(TENANT, 32)
    assert estimates.snapshot() == {TENANT: 17.0}


def test_only_tenants_of_late_are_known() -> None:
    """An issuer of tokens may name any number of them, and all are in each snapshot of the queues."""
    estimates = OutputEstimates()
    for number in range(5000):
        estimates.learn(TenantId(f"tenant-{number}"), 16)
        estimates.learn(TENANT, 40)
    assert len(estimates.snapshot()) < 1200
    assert estimates.expected(_request(0.0, 10)) == 40
