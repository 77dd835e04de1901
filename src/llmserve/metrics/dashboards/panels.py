"""The words of a dashboard, and the expressions that many panels are made of.

`$cluster` and `$__rate_interval` are Grafana's variables: the chosen clusters, and a time that holds
several scrapes.
"""

from dataclasses import dataclass, field
from enum import StrEnum

_CHOSEN = 'cluster=~"$cluster"'


class Unit(StrEnum):
    """As Grafana calls them."""

    NONE = "short"
    PER_SECOND = "ops"
    SECONDS = "s"
    BYTES = "bytes"
    BYTES_PER_SECOND = "Bps"
    BITS_PER_SECOND = "bps"
    RATIO = "percentunit"


@dataclass(frozen=True, slots=True)
class Query:
    """legend: `{{label}}` is replaced by the series' label."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """description: what to see in it, and what to do about it. stacked: its series are parts of a sum."""

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """uid: also the name of its file."""

    uid: str
    title: str
    description: str
    sections: tuple[Section, ...] = field(default=())


def series(metric: str, *matchers: str) -> str:
    """The metric's series of the chosen clusters."""
    return f"{metric}{{{','.join((_CHOSEN, *matchers))}}}"


def rate(metric: str, *matchers: str) -> str:
    return f"rate({series(metric, *matchers)}[$__rate_interval])"


def total(expression: str, by: str = "") -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def mean(metric: str, count: str, by: str) -> str:
    """Of one counter for each of another."""
    return f"{total(rate(metric), by)} / {total(rate(count), by)}"


def quantiles(histogram: str) -> tuple[Query, ...]:
    buckets = total(rate(f"{histogram}_bucket"), "le")
    return tuple(Query(f"histogram_quantile({q}, {buckets})", f"p{q * 100:g}") for q in (0.5, 0.9, 0.99))
