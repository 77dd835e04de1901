"""Two clusters under the same load, in turns: what differs, and how sure that is. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from llmserve.loadgen.answer import LoadRecord
from llmserve.loadgen.report import About, LoadReport

_RESAMPLES = 1000
_CONFIDENCE = 0.95
# Below this a difference is not worth a word, however sure.
_WORTH = 0.02

Samples = npt.NDArray[np.float64]
Figure = Callable[[Samples], float]


class ComparisonFinding(StrEnum):
    BETTER = "better"
    WORSE = "worse"
    SAME = "no difference shown"


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of each cluster with the same requests. base, other: their records. seconds: the time that
    each took."""

    base: Sequence[LoadRecord]
    other: Sequence[LoadRecord]
    base_seconds: float
    other_seconds: float


@dataclass(frozen=True, slots=True)
class Contrast:
    """ratio: other / base, with the ends of its 95% interval."""

    figure: str
    unit: str
    base: float
    other: float
    ratio: float
    low: float
    high: float
    less_is_better: bool

    @property
    def finding(self) -> ComparisonFinding:
        """A difference counts only if the interval does not contain 1 and it is 2% or more."""
        if self.low <= 1 <= self.high or abs(self.ratio - 1) < _WORTH:
            return ComparisonFinding.SAME
        return (
            ComparisonFinding.BETTER if (self.ratio < 1) == self.less_is_better else ComparisonFinding.WORSE
        )


@dataclass(frozen=True, slots=True)
class _Measure:
    name: str
    unit: str
    value: Callable[[LoadRecord], float | None]
    figure: Figure


def _quantile(share: float) -> Figure:
    """The same quantile as numpy's, which takes 20 times as long for the thousands of small samples here."""

    def figure(values: Samples) -> float:
        ordered = np.sort(values)
        low, rest = divmod(share * (len(ordered) - 1), 1)
        first, second = ordered[int(low)], ordered[min(int(low) + 1, len(ordered) - 1)]
        return float(first + rest * (second - first))

    return figure


def _mean(values: Samples) -> float:
    return float(values.sum() / len(values))


_MEASURES = (
    _Measure("time to first token, median", "s", lambda one: one.ttft, _quantile(0.5)),
    _Measure("time to first token, p95", "s", lambda one: one.ttft, _quantile(0.95)),
    _Measure("time per output token, mean", "s", lambda one: one.tpot, _mean),
    _Measure("end to end, median", "s", lambda one: one.e2e, _quantile(0.5)),
    _Measure("end to end, p95", "s", lambda one: one.e2e, _quantile(0.95)),
)


@dataclass(frozen=True, slots=True)
class _Again:
    """How often samples are drawn again, and with which generator."""

    rng: np.random.Generator
    times: int


def contrasts(rounds: Sequence[Round], *, resamples: int = _RESAMPLES) -> list[Contrast]:
    """Compares the requests that both clusters served. The intervals come from a bootstrap over rounds and,
    in each round, over requests, the same for both."""
    again = _Again(np.random.default_rng(0), resamples)
    found = [_contrast(measure, rounds, again) for measure in _MEASURES]
    return [one for one in found if one is not None] + _throughput(rounds, again)


def _contrast(measure: _Measure, rounds: Sequence[Round], again: _Again) -> Contrast | None:
    pairs = [one for one in (_pairs(measure, one) for one in rounds) if one.size]
    if not pairs:
        return None
    together = np.concatenate(pairs, axis=1)
    base, other = measure.figure(together[0]), measure.figure(together[1])
    if not base:
        return None
    ratios = [_ratio(measure.figure, _drawn_again(pairs, again.rng)) for _ in range(again.times)]
    low, high = _interval(ratios)
    return Contrast(measure.name, measure.unit, base, other, other / base, low, high, less_is_better=True)


def _pairs(measure: _Measure, one: Round) -> Samples:
    """Row 0 is base, row 1 other, with a column for each request that has a value in both."""
    mine = _values(measure, one.base)
    theirs = _values(measure, one.other)
    both = sorted(mine.keys() & theirs.keys())
    return np.array([[mine[key] for key in both], [theirs[key] for key in both]], dtype=float)


def _values(measure: _Measure, records: Sequence[LoadRecord]) -> dict[tuple[str, int, int], float]:
    values = {(one.tenant, one.conversation, one.turn): measure.value(one) for one in records if one.served}
    return {key: value for key, value in values.items() if value is not None}


def _drawn_again(pairs: Sequence[Samples], rng: np.random.Generator) -> Samples:
    rounds = [pairs[index] for index in rng.integers(0, len(pairs), len(pairs))]
    drawn = [one[:, rng.integers(0, one.shape[1], one.shape[1])] for one in rounds]
    return np.concatenate(drawn, axis=1)


def _ratio(figure: Figure, pairs: Samples) -> float:
    base = figure(pairs[0])
    return figure(pairs[1]) / base if base else 1.0


def _throughput(rounds: Sequence[Round], again: _Again) -> list[Contrast]:
    """Output tokens per second, one value for each round."""
    base = np.array([_tokens(one.base) / one.base_seconds for one in rounds])
    other = np.array([_tokens(one.other) / one.other_seconds for one in rounds])
    if not base.all():
        return []
    ratio = float(other.mean() / base.mean())
    draws = again.rng.integers(0, len(rounds), (again.times, len(rounds)))
    low, high = _interval([float(other[draw].mean() / base[draw].mean()) for draw in draws])
    mean = float(base.mean()), float(other.mean())
    return [Contrast("output tokens per second", "/s", *mean, ratio, low, high, less_is_better=False)]


def _tokens(records: Sequence[LoadRecord]) -> int:
    return sum(record.output_tokens for record in records if record.served)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def verdict(found: Sequence[Contrast], base: str, other: str, rounds: int) -> str:
    """The findings in sentences."""
    better = [_words(one) for one in found if one.finding is ComparisonFinding.BETTER]
    worse = [_words(one) for one in found if one.finding is ComparisonFinding.WORSE]
    if not found:
        said = f"Nothing can be said: no request was served by both {base} and {other}."
    elif not better and not worse:
        said = f"No difference between {base} and {other} was shown on this load."
    elif not worse:
        said = f"On this load {other} is better than {base}: {', '.join(better)}."
    elif not better:
        said = f"On this load {other} is worse than {base}: {', '.join(worse)}."
    else:
        said = (
            f"On this load {other} is better than {base} in {', '.join(better)}; worse in {', '.join(worse)}."
        )
    return said + _caution(rounds)


def _words(one: Contrast) -> str:
    return f"{one.figure} {one.ratio - 1:+.0%} (95%: {one.low - 1:+.0%} to {one.high - 1:+.0%})"


def _caution(rounds: int) -> str:
    return " With fewer than 3 rounds the intervals do not say how starts differ." if rounds < 3 else ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """base, other: names of the clusters. reports: the reports of each round, by name."""

    base: str
    other: str
    rounds: Sequence[Round]
    reports: Sequence[Mapping[str, LoadReport]]
    contrasts: Sequence[Contrast]
    verdict: str

    @classmethod
    def of(
        cls, base: str, other: str, rounds: Sequence[Round], reports: Sequence[Mapping[str, LoadReport]]
    ) -> "Comparison":
        """Compares one round or more."""
        found = contrasts(rounds)
        return cls(base, other, rounds, reports, found, verdict(found, base, other, len(rounds)))

    @property
    def names(self) -> tuple[str, str]:
        return self.base, self.other

    @property
    def about(self) -> About:
        """The description of the first turn; the others differ in seed and URL."""
        return self.reports[0][self.base].about

    @property
    def served(self) -> dict[str, list[LoadRecord]]:
        """The served requests of all rounds, by cluster."""
        records = {
            self.base: [one for turn in self.rounds for one in turn.base],
            self.other: [one for turn in self.rounds for one in turn.other],
        }
        return {name: [one for one in all_of_it if one.served] for name, all_of_it in records.items()}

    @property
    def notes(self) -> list[str]:
        """All notes, without repetitions."""
        return list(
            dict.fromkeys(note for one in self.reports for report in one.values() for note in report.notes)
        )

    def served_words(self, name: str) -> str:
        """How many requests the cluster served, in one line."""
        reports = [one[name] for one in self.reports]
        served, sent = sum(one.served for one in reports), sum(one.requests for one in reports)
        good = f", {sum(one.good for one in reports)} within the limits" if reports[0].slo.asks else ""
        kinds = ", ".join(sorted({line.label for one in reports for line in one.failures}))
        return f"{name}: {served} of {sent} requests served{good}{f' (failed: {kinds})' if kinds else ''}"
