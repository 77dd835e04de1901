"""Which ranges are asked for."""

from hypothesis import given
from hypothesis import strategies as st

from llmserve.kvstore.tiers.object.records import Extent, Range, plan_ranges


def bounds(ranges: list[Range]) -> list[tuple[int, int]]:
    return [(range_.start, range_.end) for range_ in ranges]


def extents(*pairs: tuple[int, int]) -> list[Extent]:
    return [Extent(number, start, end - start) for number, (start, end) in enumerate(pairs)]


def test_neighbours_share_a_request_and_far_ones_do_not() -> None:
    plan = plan_ranges(extents((0, 10), (10, 20), (25, 30), (50, 60)), 100, 5)
    assert bounds(plan) == [(0, 30), (50, 60)]
    assert [extent.number for extent in plan[0].extents] == [0, 1, 2]


def test_a_request_stays_within_its_size_and_ends_with_an_extent() -> None:
    assert bounds(plan_ranges(extents((0, 40), (40, 80), (80, 120)), 100, 0)) == [(0, 80), (80, 120)]


def test_a_long_extent_is_cut_into_equal_parts_and_the_last_takes_a_neighbour() -> None:
    plan = plan_ranges(extents((10, 260), (260, 270)), 100, 0)
    assert bounds(plan) == [(10, 93), (93, 176), (176, 270)]
    assert [[extent.number for extent in range_.extents] for range_ in plan] == [[0], [0], [0, 1]]


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 300)), max_size=12),
    st.integers(1, 200),
    st.integers(0, 50),
)
def test_every_byte_wanted_comes_and_no_request_is_too_long(
    pieces: list[tuple[int, int]], range_bytes: int, gap_bytes: int
) -> None:
    wanted = [Extent(number, start, size) for number, (start, size) in enumerate(pieces)]
    plan = plan_ranges(wanted, range_bytes, gap_bytes)
    assert all(0 < range_.end - range_.start <= range_bytes for range_ in plan)
    for extent in wanted:
        mine = [set(range(r.start, r.end)) for r in plan if extent in r.extents]
        assert set(range(extent.offset, extent.end)) <= set().union(*mine)


@given(st.integers(1, 1000), st.integers(1, 100))
def test_what_is_cut_is_read_once(size: int, range_bytes: int) -> None:
    plan = plan_ranges([Extent(0, 5, size)], range_bytes, 10)
    assert sum(range_.end - range_.start for range_ in plan) == size
