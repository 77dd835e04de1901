"""Figures of a report."""

from llmserve.core.ids import TenantId
from llmserve.core.stats import jain
from llmserve.simulate.observed import Timeline

A, B = TenantId("a"), TenantId("b")


def test_jain_is_one_for_equal_shares_and_one_nth_for_one_that_has_all() -> None:
    assert jain([3.0, 3.0, 3.0]) == 1.0
    assert jain([5.0, 0.0]) == 0.5
    assert jain([0.0, 0.0]) == 1.0


def test_shares_are_taken_where_all_wait_at_both_ends_of_a_second() -> None:
    timeline = Timeline()
    for waiting in ([A], [A, B], [A, B], [B]):
        timeline.computed(A, 10)
        timeline.second_over(waiting)
    assert timeline.contended([A, B]) == [2]
    assert timeline.sums([0, 2]) == {A: 20}
