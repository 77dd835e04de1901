"""What the tiers of a store hold and have done, read from their state."""

from llmserve.core.stats import EvictReason, StoreStats, TierStats
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.store.lower_tier import LowerStore
from llmserve.kvstore.store.store import BlockStore
from llmserve.kvstore.tiers.base import TierOutcome


def stats_of(store: BlockStore) -> StoreStats:
    tiers = (_dram(store.dram), *map(_lower, store.lower))
    return StoreStats(tiers, store.saved_prefill_seconds)


def _dram(tier: DramTier) -> TierStats:
    book, counters = tier.book, tier.counters
    return TierStats(
        name=tier.name,
        kind="dram",
        blocks=len(book),
        used_bytes=book.used_bytes,
        capacity_bytes=book.capacity_bytes,
        pinned_blocks=len(book.protected()),
        totals=tier.totals,
        evictions={reason: book.evictions[reason] for reason in EvictReason},
        outcomes={
            ("reserve", "reserved"): counters.reserved,
            ("reserve", "full"): counters.full,
            ("reserve", "expired"): counters.expired,
            ("write", "done"): counters.stored,
            ("write", "late"): counters.late,
            ("write", "aborted"): counters.aborted,
            ("write", "written_off"): counters.written_off,
            ("lease", "granted"): counters.leases_granted,
            ("lease", "released"): counters.leases_released,
            ("lease", "expired"): counters.leases_expired,
        },
        eviction_ages=book.eviction_ages,
    )


def _lower(tier: LowerStore) -> TierStats:
    book, operations = tier.book, ("read", "write")
    return TierStats(
        name=tier.name,
        kind=tier.kind,
        blocks=len(book),
        used_bytes=book.used_bytes,
        capacity_bytes=book.capacity_bytes,
        pinned_blocks=len(book.protected()),
        queued_bytes=tier.queued_bytes,
        totals=tier.totals,
        evictions={reason: book.evictions[reason] for reason in EvictReason},
        outcomes={(name, one.value): tier.outcomes[name, one] for name in operations for one in TierOutcome},
        eviction_ages=book.eviction_ages,
        trouble=tier.trouble,
    )
