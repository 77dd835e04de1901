import pytest

from llmserve.core.ids import WorkerId
from llmserve.router.placement.balance import PlacementBalance, RecentCounts

A, B, C, D = (WorkerId(name) for name in "abcd")


def test_one_placement_is_nobodys_too_many() -> None:
    spread = PlacementBalance()
    spread.placed(A, 4)
    assert spread.over(4) == set()


def test_who_gets_all_is_over_its_share_and_who_gets_nothing_is_not() -> None:
    spread = PlacementBalance()
    for _ in range(20):
        spread.placed(A, 4)
    assert spread.over(4) == {A}


def test_equal_shares_are_not_over() -> None:
    spread = PlacementBalance()
    for _ in range(100):
        for worker in (A, B, C, D):
            spread.placed(worker, 4)
    assert spread.over(4) == set()


def test_what_was_long_ago_is_forgotten() -> None:
    spread = PlacementBalance()
    for _ in range(200):
        spread.placed(A, 2)
    for _ in range(200):
        spread.placed(B, 2)
    assert spread.over(2) == {B}


def test_alone_there_is_no_share_to_be_over() -> None:
    spread = PlacementBalance()
    for _ in range(5000):  # far past where counts are scaled down
        spread.placed(A, 1)
    assert spread.over(1) == set()


def test_counts_stay_small_and_workers_that_left_are_forgotten() -> None:
    spread = PlacementBalance()
    spread.placed(B, 2)
    for _ in range(5000):
        spread.placed(A, 2)
        assert spread._counts.unit <= 1.1e12
    assert set(spread._counts._counts) == {A}
    assert spread.over(2) == {A}


def test_a_placement_counts_more_than_all_before_it() -> None:
    spread = PlacementBalance()
    spread.placed(A, 4)
    assert spread._counts._counts[A] == spread._counts.total == pytest.approx(65 / 64)
    spread.placed(A, 4)
    assert spread._counts._counts[A] == pytest.approx(65 / 64 + (65 / 64) ** 2)


def test_the_bound_is_1_3_times_the_share_and_one_request() -> None:
    spread = PlacementBalance()
    spread._counts.total, spread._counts._counts = 100.0, {A: 66.0, B: 66.1}
    assert spread.over(2) == {B}


def test_scaling_down_keeps_the_shares_and_drops_a_millionth_of_a_request() -> None:
    counts: RecentCounts[WorkerId] = RecentCounts()
    counts.unit, counts._counts = 2.0, {A: 6.0, B: 2e-6, C: 3e-6}
    counts._shrink()
    assert (counts.unit, counts._counts) == (1.0, {A: 3.0, C: 1.5e-6})
    assert counts.total == 3.0 + 1.5e-6


def test_shares_are_of_what_was_counted_lately() -> None:
    counts: RecentCounts[WorkerId] = RecentCounts()
    assert counts.share(A) == 0.0
    for _ in range(2000):
        counts.add(A, 8.0)
        counts.add(B, 8.0)
        counts.add(B, 8.0)
    assert counts.share(A) == pytest.approx(1 / 3, abs=0.05)
    assert counts.share(C) == 0.0
