import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.router.workers.latency import LineFit


def test_it_starts_with_what_it_is_told() -> None:
    line = LineFit(0.01, 0.002, typical=100.0)
    assert line.seconds(50) == pytest.approx(0.11)
    assert line.samples == 0


def test_it_is_the_line_of_least_squares_that_forgets() -> None:
    """An older measurement counts 31/32 of the next one. What the line began with counts as one measurement;
    an anchor at amount 0 counts half, for ever."""
    line, measured = LineFit(0.01, 0.002, typical=100.0), [(20, 0.2), (300, 0.9), (150, 0.4), (40, 0.3)]
    for amount, seconds in measured:
        line.learn(amount, seconds)
    amounts, seconds_of_all = zip((0, 0.01), (100, 0.21), *measured, strict=True)
    weights = [0.5, *((31 / 32) ** age for age in range(4, -1, -1))]
    slope, fixed = np.polyfit(amounts, seconds_of_all, 1, w=np.sqrt(weights))
    assert (line.fixed, line.slope) == pytest.approx((fixed, slope))


def test_a_line_that_would_fall_is_level() -> None:
    line = LineFit(0.01, 0.002, typical=100.0)
    for _ in range(200):
        line.learn(10, 0.5)
        line.learn(1000, 0.1)
    assert line.slope == 0.0
    assert line.fixed == pytest.approx(0.3, abs=0.01)


def test_a_line_that_would_begin_below_zero_begins_there() -> None:
    line = LineFit(0.01, 0.002, typical=100.0)
    for _ in range(200):
        line.learn(1000, 0.5)
        line.learn(3000, 4.0)
    assert line.fixed == pytest.approx(0.0)
    assert line.seconds(4000) == pytest.approx(4.5, rel=0.02)


@pytest.mark.parametrize(("measured", "believed"), [(100.0, 4.0), (0.01, 0.25)])
def test_from_the_ninth_on_a_measurement_is_at_most_four_times_off(measured: float, believed: float) -> None:
    def after(known: int, factor: float) -> tuple[float, float]:
        line = LineFit(0.1, 0.002, typical=1000.0)
        for number in range(known):
            line.learn(500 + 100 * number, 2.0)
        line.learn(800, factor * line.seconds(800))
        return line.fixed, line.slope

    assert after(8, measured) == pytest.approx(after(8, believed))
    assert after(7, measured) != pytest.approx(after(7, believed))


def test_it_finds_the_line_that_noisy_measurements_lie_on() -> None:
    rng, line = random.Random(5), LineFit(0.005, 0.0002, typical=1000.0)
    for _ in range(300):
        tokens = rng.randint(10, 4000)
        line.learn(tokens, (0.02 + 0.001 * tokens) * rng.uniform(0.9, 1.1))
    assert line.slope == pytest.approx(0.001, rel=0.1)
    assert line.seconds(2000) == pytest.approx(2.02, rel=0.1)


def test_equal_amounts_leave_the_fixed_part_where_it_was() -> None:
    line = LineFit(0.005, 0.0002, typical=1000.0)
    for _ in range(200):
        line.learn(500, 1.0)
    assert line.fixed == pytest.approx(0.005, abs=0.01)
    assert line.seconds(500) == pytest.approx(1.0, rel=0.05)


def test_one_pause_of_the_machine_is_not_a_slow_engine() -> None:
    line = LineFit(0.0, 0.001, typical=1000.0)
    for _ in range(50):
        line.learn(1000, 1.0)
    line.learn(1000, 300.0)
    assert line.seconds(1000) < 1.2


def test_an_engine_that_became_slow_is_noticed() -> None:
    line = LineFit(0.0, 0.001, typical=1000.0)
    for _ in range(50):
        line.learn(1000, 1.0)
    for _ in range(40):
        line.learn(1000, 3.0)
    assert line.seconds(1000) > 2.0


_MEASURED = st.tuples(st.integers(0, 10**6), st.floats(0, 1e4))


@given(st.lists(_MEASURED, max_size=60), st.integers(0, 10**6))
def test_more_never_takes_less_and_nothing_is_negative(
    measured: list[tuple[int, float]], amount: int
) -> None:
    line = LineFit(0.005, 0.0002, typical=1000.0)
    for tokens, seconds in measured:
        line.learn(tokens, seconds)
    assert line.fixed >= 0
    assert line.slope >= 0
    assert 0 <= line.seconds(amount) <= line.seconds(amount + 1) < float("inf")
