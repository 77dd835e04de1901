"""Figures that packages share: percentiles, fairness, what the scheduler, the KV store and speculation
report."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Figures of `count` values, in their unit. Percentiles are interpolated between values, as numpy's.
    Without values all are 0."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    most: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        return cls.of_counts(Counter(values))

    @classmethod
    def of_counts(cls, counts: Mapping[float, int]) -> "Percentiles":
        """counts: how often each value occurs, at least once."""
        if not counts:
            return cls()
        values = sorted(counts)
        passed = list(accumulate(counts[value] for value in values))
        mean = sum(value * counts[value] for value in values) / passed[-1]
        p50, p90, p95, p99 = (_percentile(values, passed, percent) for percent in (50, 90, 95, 99))
        return cls(passed[-1], mean, p50, p90, p95, p99, values[-1])


def _percentile(values: Sequence[float], passed: Sequence[int], percent: int) -> float:
    """values: each value once, rising. passed: number of values not above each."""
    rank, rest = divmod(percent * (passed[-1] - 1), 100)
    below = values[bisect_right(passed, rank)]
    above = values[bisect_right(passed, rank + 1)] if rest else below
    return below + (above - below) * rest / 100


@dataclass(frozen=True, slots=True)
class TenantStats:
    """waiting and running: now; the others: totals since the start. refused: before the queue or out of
    it. queue_seconds: of the dispatched requests. served_tokens: computed prompt and answer of the
    requests that ended."""

    tenant: str
    weight: float
    waiting: int = 0
    running: int = 0
    dispatched: int = 0
    refused: int = 0
    queue_seconds: float = 0.0
    served_tokens: int = 0


@dataclass(frozen=True, slots=True)
class BudgetStats:
    """used_ratio: 1 when there is no room; None: there is no limit. refused: requests that came while
    there was no room."""

    name: str
    used_ratio: float | None
    refused: int


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    tenants: tuple[TenantStats, ...] = ()
    budgets: tuple[BudgetStats, ...] = ()
    queue_limit_requests: int = 0
    tokens_in_flight: int = 0
    kv_bytes_in_flight: float = 0.0


def jain(shares: Iterable[float]) -> float:
    """Returns Jain's fairness index: 1 when all shares are equal or nobody has anything, 1/n when one of n
    has all."""
    values = list(shares)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


# From what goes at once to what stays for a week.
AGE_BOUNDS_SECONDS = (1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0, 86400.0, 604800.0)


class EvictReason(StrEnum):
    ROOM = "room"  # others needed the room
    QUOTA = "quota"  # its tenant held as much as it may
    ASKED = "asked"  # `llmserve kv evict`
    CORRUPT = "corrupt"  # it was not what had been written


class Ages:
    """A histogram of ages (seconds): for each bound how many were at most that old, and how many were
    older than all."""

    def __init__(self, bounds_seconds: Sequence[float] = AGE_BOUNDS_SECONDS) -> None:
        self.bounds_seconds = tuple(bounds_seconds)
        self.counts = [0] * (len(self.bounds_seconds) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_seconds, seconds)] += 1
        self.sum_seconds += seconds


@dataclass(slots=True)
class TierTotals:
    """Totals since the start. hit: blocks and tokens given to prompts, by the tier that had them. load,
    store: bytes of blocks out of the tier and into it, and the time that took; the seconds of DRAM stay 0,
    because the workers copy."""

    hit_blocks: int = 0
    hit_tokens: int = 0
    load_bytes: int = 0
    load_seconds: float = 0.0
    store_bytes: int = 0
    store_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TierStats:
    """name: of the storage class. kind: its medium. pinned: blocks that an operator pinned, with those
    before them. queued: bytes to be written. evictions, and outcomes (by operation and result): since the
    start, an entry for each that there can be. eviction_ages: time since the last use of blocks that went
    for want of room. trouble: what is wrong with the tier now; empty when nothing is."""

    name: str
    kind: str
    blocks: int = 0
    used_bytes: int = 0
    capacity_bytes: int = 0
    pinned_blocks: int = 0
    queued_bytes: int = 0
    totals: TierTotals = field(default_factory=TierTotals)
    evictions: Mapping[EvictReason, int] = field(default_factory=dict)
    outcomes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    eviction_ages: Ages = field(default_factory=Ages)
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """tiers: fastest first. saved_prefill_seconds: what the hits would have cost those workers that report
    the cost of a block."""

    tiers: tuple[TierStats, ...] = ()
    saved_prefill_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchGain:
    """A class of batch sizes of one engine. batch: the smallest size of the class. proposes: whether its
    steps propose tokens, apart from those of a trial. gain: tokens per second with proposals, as a multiple
    of those without, in steps that compute no prompts; 0: not measured yet. steps: of this class, since the
    start."""

    batch: int
    proposes: bool
    gain: float
    steps: int


@dataclass(frozen=True, slots=True)
class SpeculationReport:
    """What an engine that speculates reports; totals since its start. verifications: times that one request
    had its proposals verified. proposed_tokens, accepted_tokens: of these proposals."""

    verifications: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    gains: Sequence[BatchGain] = ()

    @property
    def switched_off(self) -> bool:
        """Whether steps of some batch size propose nothing, because that is faster."""
        return not all(one.proposes for one in self.gains)

    @property
    def acceptance(self) -> float:
        """The part of the proposed tokens that was right; 0 before there was one."""
        return self.accepted_tokens / self.proposed_tokens if self.proposed_tokens else 0.0

    @property
    def mean_length(self) -> float:
        """Tokens that a request got in a step with proposals, with the one that it gets anyway; 1 before
        there was one."""
        return 1.0 + (self.accepted_tokens / self.verifications if self.verifications else 0.0)
