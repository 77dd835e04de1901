from hypothesis import given
from hypothesis import strategies as st

from llmserve.apiserver.request.rules import RetryBudget, RetryLimits
from llmserve.core.ids import TenantId

A, B = TenantId("a"), TenantId("b")


def test_a_burst_then_a_share_of_the_requests() -> None:
    budget = RetryBudget(RetryLimits(share=0.25, burst=3, tenant_share=0.5))
    assert [budget.take(A) for _ in range(4)] == [True, True, True, False]
    for _ in range(3):
        budget.started(A)
    assert not budget.take(A)
    budget.started(A)
    assert budget.take(A)
    assert budget.left == 0


def test_a_tenant_leaves_retries_to_the_others() -> None:
    budget = RetryBudget(RetryLimits(share=0.0, burst=8, tenant_share=0.75))
    budget.started(A)
    budget.started(B)
    assert sum(budget.take(A) for _ in range(20)) == 6
    assert sum(budget.take(B) for _ in range(20)) == 2


def test_requests_of_one_tenant_do_not_fill_another_s() -> None:
    budget = RetryBudget(RetryLimits(share=1.0, burst=4, tenant_share=0.5))
    assert budget.take(A)
    budget.started(B)
    assert budget.take(A)
    for _ in range(10):
        budget.started(B)
    assert not budget.take(A)
    budget.started(A)
    assert budget.take(A)


@given(
    st.lists(st.tuples(st.sampled_from([A, B]), st.booleans()), max_size=200),
    st.integers(1, 10),
    st.sampled_from([0.0, 0.125, 0.5, 1.0]),
)
def test_never_more_than_burst_and_share(
    events: list[tuple[TenantId, bool]], burst: int, share: float
) -> None:
    budget = RetryBudget(RetryLimits(share, burst, tenant_share=0.5))
    started = {A: 0, B: 0}
    retries = {A: 0, B: 0}
    for tenant, is_start in events:
        if is_start:
            started[tenant] += 1
            budget.started(tenant)
        else:
            retries[tenant] += budget.take(tenant)
        assert sum(retries.values()) <= burst + share * sum(started.values())
        assert retries[tenant] <= burst + share * started[tenant]
        assert 0 <= budget.left <= burst
