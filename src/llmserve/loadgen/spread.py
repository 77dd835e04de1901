"""Figures of many values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
        if not len(values):
            return cls()
        found = np.asarray(values, dtype=float)
        p50, p90, p95, p99 = (float(value) for value in np.percentile(found, (50, 90, 95, 99)))
        return cls(len(found), float(found.mean()), p50, p90, p95, p99, float(found.max()))
