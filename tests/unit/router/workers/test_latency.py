import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.router.workers.latency import LineFit


def test_it_starts_with_what_it_is_told() -> None:
    line = LineFit(0.01, 0.002, typical=100.0)
    assert line.seconds(50) == pytest.approx(0.11)
    assert line.samples == 0


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
