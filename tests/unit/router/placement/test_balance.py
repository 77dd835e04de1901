from llmserve.core.ids import WorkerId
from llmserve.router.placement.kv_aware import PlacementBalance

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
        assert spread._unit <= 1.1e12
    assert set(spread._counts) == {A}
    assert spread.over(2) == {A}
