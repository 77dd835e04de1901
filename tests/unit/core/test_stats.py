import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.stats import Percentiles

VALUES = st.lists(st.floats(0.0, 1e3), min_size=1, max_size=60)


def test_figures_of_known_values() -> None:
    spread = Percentiles.of([float(value) for value in range(101, 0, -1)])
    assert (spread.count, spread.mean, spread.most) == (101, 51.0, 101.0)
    assert (spread.p50, spread.p90, spread.p95, spread.p99) == (51.0, 91.0, 96.0, 100.0)
    assert Percentiles.of([1.0, 2.0]).p50 == 1.5


def test_one_value_is_all_figures_and_none_is_zero() -> None:
    assert Percentiles.of([3.0]) == Percentiles(1, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0)
    assert Percentiles.of([]) == Percentiles()


@given(VALUES)
def test_percentiles_are_numpys(values: list[float]) -> None:
    spread = Percentiles.of(values)
    found = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.most)
    wanted = (np.mean(values), *np.percentile(values, (50, 90, 95, 99)), max(values))
    assert found == pytest.approx(wanted)


def test_counts_are_as_many_values() -> None:
    assert Percentiles.of_counts({5.0: 2, 1.0: 98}) == Percentiles.of([1.0] * 98 + [5.0] * 2)
