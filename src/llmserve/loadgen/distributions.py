"""How the times of requests are distributed, as plots: one line for each group of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from llmserve.loadgen.plot import Series, cumulative, plot
from llmserve.loadgen.record import Record

_Times = Callable[[Sequence[Record]], Iterable[float]]


def distributions(groups: Mapping[str, Sequence[Record]]) -> list[str]:
    """SVG elements. groups: requests that were served, by name."""
    return [
        _distribution("Time to first token", "requests", groups, _first_tokens),
        _distribution("Between tokens", "gaps", groups, _gaps),
        _distribution("Time per output token", "requests", groups, _per_token),
        _distribution("End to end", "requests", groups, _ends),
    ]


def _distribution(title: str, what: str, groups: Mapping[str, Sequence[Record]], times: _Times) -> str:
    series = [
        Series(name, cumulative([1000 * seconds for seconds in times(records)]))
        for name, records in groups.items()
    ]
    return plot(title, "milliseconds", f"% of {what}", series)


def _first_tokens(records: Sequence[Record]) -> Iterable[float]:
    return (one.ttft for one in records)


def _gaps(records: Sequence[Record]) -> Iterable[float]:
    return (gap for one in records for gap in one.gaps)


def _per_token(records: Sequence[Record]) -> Iterable[float]:
    return (one.tpot for one in records if one.tpot is not None)


def _ends(records: Sequence[Record]) -> Iterable[float]:
    return (one.e2e for one in records)
