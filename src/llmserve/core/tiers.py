"""What the tiers of the KV store hold and have done: for metrics, `llmserve kv` and `llmserve status`."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

# From what goes at once to what stays for a week.
AGE_BOUNDS_SECONDS = (1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0, 86400.0, 604800.0)


class EvictReason(StrEnum):
    ROOM = "room"  # others needed the room
    QUOTA = "quota"  # its tenant held as much as it may
    ASKED = "asked"  # `llmserve kv evict`
    CORRUPT = "corrupt"  # it was not what had been written


class Ages:
    """A histogram: how many were at most so old (seconds), for each bound, and above all of them."""

    def __init__(self, bounds_seconds: Sequence[float] = AGE_BOUNDS_SECONDS) -> None:
        self.bounds_seconds = tuple(bounds_seconds)
        self.counts = [0] * (len(self.bounds_seconds) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_seconds, seconds)] += 1
        self.sum_seconds += seconds


@dataclass(slots=True)
class TierTotals:
    """Since the start. hit: given to prompts, by the tier that had them. load, store: bytes of blocks out of
    the tier and into it, and how long that took; the seconds of DRAM stay 0, because the workers copy."""

    hit_blocks: int = 0
    hit_tokens: int = 0
    load_bytes: int = 0
    load_seconds: float = 0.0
    store_bytes: int = 0
    store_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TierStats:
    """name: of the storage class. kind: what it is made of. pinned: by an operator, with what is before them.
    queued: to be written. evictions, and outcomes (by operation and result), since the start: an entry for
    each that there can be. eviction_ages: since the last use, of blocks that went for want of room. trouble:
    what is wrong with the tier now; empty when nothing is."""

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
    """tiers: fastest first. saved_prefill_seconds: what the hits would have cost the workers that told what a
    block costs them."""

    tiers: tuple[TierStats, ...] = ()
    saved_prefill_seconds: float = 0.0
