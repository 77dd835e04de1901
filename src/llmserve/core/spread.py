"""Figures of many values."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Spread:
    """Of `count` values, in their unit. Percentiles lie between values in proportion, as numpy's. All 0
    of none."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    most: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls.of_counts(Counter(values))

    @classmethod
    def of_counts(cls, counts: Mapping[float, int]) -> "Spread":
        """counts: how often each value came, at least once."""
        if not counts:
            return cls()
        values = sorted(counts)
        passed = list(accumulate(counts[value] for value in values))
        mean = sum(value * counts[value] for value in values) / passed[-1]
        p50, p90, p95, p99 = (_percentile(values, passed, percent) for percent in (50, 90, 95, 99))
        return cls(passed[-1], mean, p50, p90, p95, p99, values[-1])


def _percentile(values: Sequence[float], passed: Sequence[int], percent: int) -> float:
    """values: that came, each once, rising. passed: how many were not above each."""
    rank, rest = divmod(percent * (passed[-1] - 1), 100)
    below = values[bisect_right(passed, rank)]
    above = values[bisect_right(passed, rank + 1)] if rest else below
    return below + (above - below) * rest / 100
