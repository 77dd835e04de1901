from hypothesis import given
from hypothesis import strategies as st

from llmserve.apiserver.retry_budget import RetryBudget, RetryLimits


def test_a_burst_then_a_share_of_the_requests() -> None:
    budget = RetryBudget(RetryLimits(share=0.25, burst=3))
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    for _ in range(3):
        budget.started()
    assert not budget.take()
    budget.started()
    assert budget.take()
    assert budget.left == 0


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 10), st.sampled_from([0.0, 0.125, 0.5, 1.0]))
def test_never_more_than_burst_and_share(events: list[bool], burst: int, share: float) -> None:
    budget = RetryBudget(RetryLimits(share, burst))
    started = retries = 0
    for is_start in events:
        if is_start:
            started += 1
            budget.started()
        else:
            retries += budget.take()
        assert retries <= burst + share * started
        assert 0 <= budget.left <= burst
