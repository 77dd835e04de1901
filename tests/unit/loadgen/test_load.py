"""Arrivals in virtual time."""

import itertools
import random
import statistics

import pytest

from llmserve.loadgen.load import arrivals


def gaps(burstiness: float, count: int = 20_000) -> list[float]:
    times = [0.0, *itertools.islice(arrivals(4.0, burstiness, random.Random(7)), count)]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_constant_arrivals_are_a_clock() -> None:
    assert gaps(0.0, 5) == pytest.approx([0.25] * 5)


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 3.0])
def test_the_rate_is_kept_and_burstiness_is_the_gaps_coefficient_of_variation(burstiness: float) -> None:
    found = gaps(burstiness)
    mean = statistics.fmean(found)
    assert mean == pytest.approx(0.25, rel=0.08)
    assert statistics.stdev(found) / mean == pytest.approx(burstiness, rel=0.08)


def test_a_poisson_process_has_no_memory() -> None:
    """Share of gaps above the mean: 1/e."""
    assert sum(gap > 0.25 for gap in gaps(1.0)) / 20_000 == pytest.approx(0.368, abs=0.01)


def test_the_same_seed_gives_the_same_times() -> None:
    assert gaps(1.0, 10) == gaps(1.0, 10)
