"""Figures of a report."""

import pytest

from llmserve.core.ids import TenantId
from llmserve.core.shares import jain
from llmserve.simulate.report import Spread
from llmserve.simulate.timeline import Timeline

A, B = TenantId("a"), TenantId("b")


def test_percentiles_are_values_that_came() -> None:
    spread = Spread.of([float(value) for value in range(100, 0, -1)])
    assert (spread.mean, spread.p50, spread.p90, spread.p99) == (50.5, 50.0, 90.0, 99.0)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0, 3.0)
    assert Spread.of([]) == Spread()


def test_counts_are_as_many_values() -> None:
    spread = Spread.of_counts({1.0: 98, 5.0: 2})
    assert spread.mean == pytest.approx(1.08)
    assert (spread.p50, spread.p90, spread.p99) == (1.0, 1.0, 5.0)


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
