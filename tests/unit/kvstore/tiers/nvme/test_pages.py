import random

import pytest

from llmserve.kvstore.tiers.nvme.pages import MOST_RUNS, PageMap, PageRun, rounded


def free_map(*free: tuple[int, int], end: int = 100) -> PageMap:
    return PageMap(end, free)


def test_the_run_that_fits_exactly_is_taken_first() -> None:
    pages = free_map((0, 20), (30, 35), (40, 50))
    assert pages.take_run(5) == PageRun(30, 5)
    assert pages.free_pages == 30


def test_else_the_shortest_that_is_longer_is_cut() -> None:
    pages = free_map((0, 20), (30, 40))
    assert pages.take_run(6) == PageRun(30, 6)
    assert pages.take_run(4) == PageRun(36, 4)
    assert pages.take_run(21) is None
    assert pages.free_pages == 20


def test_neighbours_that_are_given_back_are_one_run() -> None:
    pages = free_map((0, 30), end=30)
    runs = [pages.take_run(10) for _ in range(3)]
    assert runs == [PageRun(0, 10), PageRun(10, 10), PageRun(20, 10)]
    assert pages.take_run(1) is None
    for run in (runs[0], runs[2], runs[1]):
        assert run
        pages.give(run)
    pages.check_integrity([])
    assert pages.take_run(30) == PageRun(0, 30)


def test_a_file_that_grows_joins_its_free_end() -> None:
    pages = free_map((90, 100))
    pages.grow(10)
    assert (pages.end, pages.take_run(20)) == (110, PageRun(90, 20))


def test_empty_runs_are_none() -> None:
    pages = free_map((5, 5), (10, 12))
    assert pages.free_pages == 2
    assert pages.take_pieces(2) == [PageRun(10, 2)]
    assert pages.free_pages == 0


def test_pieces_come_from_the_longest_runs_and_are_exact() -> None:
    pages = free_map((0, 10), (20, 25), (30, 38))
    assert pages.take_pieces(20) == [PageRun(0, 10), PageRun(30, 8), PageRun(20, 2)]
    assert pages.free_pages == 3
    assert pages.take_run(3) == PageRun(22, 3)


def test_pieces_that_are_too_few_take_nothing() -> None:
    pages = free_map((0, 10), (20, 25))
    assert pages.take_pieces(16) == []
    assert pages.free_pages == 15
    assert pages.take_pieces(15) == [PageRun(0, 10), PageRun(20, 5)]


@pytest.mark.parametrize(("runs", "taken"), [(MOST_RUNS, MOST_RUNS), (MOST_RUNS + 1, 0)])
def test_a_blob_has_no_more_than_so_many_pieces(runs: int, taken: int) -> None:
    pages = PageMap(2 * runs, [(2 * number, 2 * number + 1) for number in range(runs)])
    assert len(pages.take_pieces(runs)) == taken
    assert pages.free_pages == runs - taken
    pages.check_integrity(
        [PageRun(2 * number + 1, 1) for number in range(runs)]
        + ([] if not taken else [PageRun(2 * number, 1) for number in range(runs)])
    )


@pytest.mark.parametrize(
    ("pages", "length"),
    [(1, 1), (2, 2), (31, 31), (33, 33), (63, 63), (64, 64), (65, 66), (127, 128), (129, 132)],
)
def test_lengths_are_rounded(pages: int, length: int) -> None:
    assert rounded(pages) == length


def test_rounding_costs_little_and_makes_few_lengths() -> None:
    lengths = {rounded(pages) for pages in range(1, 5000)}
    assert all(pages <= rounded(pages) < pages * 33 / 32 for pages in range(1, 5000))
    assert len(lengths) < 300


@pytest.mark.parametrize("seed", range(5))
def test_no_page_is_lost_or_taken_twice(seed: int) -> None:
    chance, pages, taken = random.Random(seed), PageMap(0), list[list[PageRun]]()
    for _ in range(500):
        size = chance.randrange(1, 200)
        if pages.end < 3000:
            pages.grow(chance.randrange(1, 100))
        if chance.random() < 0.6:
            run = pages.take_run(size)
            runs = [run] if run else pages.take_pieces(size)
            assert not runs or sum(run.pages for run in runs) in (size, rounded(size))
            assert runs or pages.free_pages < size
            taken += [runs] if runs else []
        elif taken:
            for run in taken.pop(chance.randrange(len(taken))):
                pages.give(run)
        pages.check_integrity([run for runs in taken for run in runs])


def test_integrity_notices_what_does_not_add_up() -> None:
    pages = free_map((0, 10), end=20)
    pages.check_integrity([PageRun(10, 10)])
    for wrong in ([], [PageRun(10, 9)], [PageRun(9, 11)]):
        with pytest.raises(AssertionError):
            pages.check_integrity(wrong)
    pages.free_pages += 1
    with pytest.raises(AssertionError):
        pages.check_integrity([PageRun(10, 10)])
