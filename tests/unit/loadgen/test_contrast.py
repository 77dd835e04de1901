"""Verdicts on loads whose truth is known."""

import random

import numpy as np
import pytest

from llmserve.loadgen.contrast import Contrast, Finding, Round, _quantile, contrasts, verdict
from llmserve.loadgen.record import Record
from tests.unit.loadgen.records import failed, served


def turn(rng: random.Random, factor: float, requests: int = 60) -> list[Record]:
    return [
        served(0.1 * n, factor * rng.lognormvariate(-1.0, 0.3), (0.05, 0.05), conversation=n)
        for n in range(requests)
    ]


def rounds(factor: float, count: int = 3) -> list[Round]:
    rng = random.Random(5)
    return [Round(turn(rng, 1.0), turn(rng, factor), 10.0, 10.0) for _ in range(count)]


def named(found: list[Contrast], figure: str) -> Contrast:
    return next(one for one in found if one.figure == figure)


def test_a_real_difference_is_found_with_an_interval_that_holds_it() -> None:
    found = contrasts(rounds(0.5), resamples=300)
    median = named(found, "time to first token, median")
    assert median.low < 0.5 < median.high
    assert median.finding is Finding.BETTER
    assert named(found, "time per output token, mean").finding is Finding.SAME
    said = verdict(found, "agg", "disagg", 3)
    assert said.startswith("On this load disagg is better than agg: time to first token, median -")


def test_no_difference_is_not_one() -> None:
    found = contrasts(rounds(1.0), resamples=300)
    assert named(found, "time to first token, median").finding is Finding.SAME
    assert (
        verdict(found, "agg", "disagg", 3) == "No difference between agg and disagg was shown on this load."
    )


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, hits = random.Random(11), 0
    for _ in range(15):
        runs = [Round(turn(rng, 1.0, 30), turn(rng, 0.8, 30), 10.0, 10.0) for _ in range(4)]
        median = named(contrasts(runs, resamples=100), "time to first token, median")
        hits += median.low <= 0.8 <= median.high
    assert hits >= 12


def test_worse_and_mixed_verdicts() -> None:
    worse = Contrast("e2e", "s", 1.0, 2.0, 2.0, 1.8, 2.2, less_is_better=True)
    more = Contrast("tokens", "/s", 1.0, 2.0, 2.0, 1.8, 2.2, less_is_better=False)
    small = Contrast("x", "s", 1.0, 1.01, 1.01, 1.005, 1.02, less_is_better=True)
    assert [one.finding for one in (worse, more, small)] == [Finding.WORSE, Finding.BETTER, Finding.SAME]
    assert verdict([worse], "a", "b", 3) == "On this load b is worse than a: e2e +100% (95%: +80% to +120%)."
    assert "b is better than a in tokens +100%" in verdict([worse, more], "a", "b", 3)
    assert "fewer than 3 rounds" in verdict([worse], "a", "b", 2)


def test_only_requests_that_both_served_are_compared() -> None:
    base, other = [served(first=1.0), failed()], [served(first=2.0)]
    assert (
        named(contrasts([Round(base, other, 1.0, 1.0)], resamples=20), "time to first token, median").ratio
        == 2.0
    )


def test_quantiles_are_numpys() -> None:
    values = np.random.default_rng(1).normal(size=37)
    for share in (0.0, 0.5, 0.95, 1.0):
        assert _quantile(share)(values) == pytest.approx(np.percentile(values, 100 * share))


def test_nothing_served_is_said() -> None:
    found = contrasts([Round([failed()], [failed()], 1.0, 1.0)])
    assert found == []
    assert verdict(found, "agg", "disagg", 3).startswith("Nothing can be said")


def test_throughput_is_of_rounds() -> None:
    found = contrasts(
        [Round(turn(random.Random(1), 1.0), turn(random.Random(1), 1.0), 10.0, 5.0)] * 3, resamples=50
    )
    assert named(found, "output tokens per second").ratio == pytest.approx(2.0)
    assert named(found, "output tokens per second").finding is Finding.BETTER
