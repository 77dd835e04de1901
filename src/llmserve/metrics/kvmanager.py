"""What the KV manager counts, and the tiers of its store as they are when they are scraped."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from llmserve.core.stats import Ages, StoreStats, TierStats
from llmserve.metrics.registry import StateCollector, StateFamily, StateRows, WatchedCounter

_Family = StateFamily[StoreStats]
_TIERS: StateRows[StoreStats, TierStats] = StateRows(
    ("tier",), lambda stats: stats.tiers, lambda tier: (tier.name,)
)

_TIER_FAMILIES: tuple[_Family, ...] = (
    _TIERS.family("kv_store_blocks", "Blocks that the tier holds", lambda tier: tier.blocks),
    _TIERS.family("kv_store_bytes", "Bytes that the tier takes", lambda tier: tier.used_bytes),
    _TIERS.family(
        "kv_store_capacity_bytes", "Bytes that the tier may take", lambda tier: tier.capacity_bytes
    ),
    _TIERS.family(
        "kv_store_pinned_blocks",
        "Blocks that an operator has pinned, and those before them",
        lambda tier: tier.pinned_blocks,
    ),
    _TIERS.family(
        "kv_store_queued_bytes", "Bytes that wait to be written to the tier", lambda tier: tier.queued_bytes
    ),
    _TIERS.family(
        "kv_store_hit_blocks_total",
        "Blocks that prompts did not have to compute, by the tier that had them",
        lambda tier: tier.totals.hit_blocks,
    ),
    _TIERS.family(
        "kv_store_hit_tokens_total",
        "Tokens of these; of workers that told how many a block has",
        lambda tier: tier.totals.hit_tokens,
    ),
    _TIERS.family(
        "kv_store_load_bytes_total",
        "Bytes of blocks out of the tier: of DRAM to workers, else into DRAM",
        lambda tier: tier.totals.load_bytes,
    ),
    _TIERS.family(
        "kv_store_load_seconds_total",
        "Time that loads took, decoding included; 0 for DRAM, where workers copy",
        lambda tier: tier.totals.load_seconds,
    ),
    _TIERS.family(
        "kv_store_store_bytes_total",
        "Bytes of blocks into the tier, before they were encoded; into DRAM: from workers",
        lambda tier: tier.totals.store_bytes,
    ),
    _TIERS.family(
        "kv_store_store_seconds_total",
        "Time that the writes took; 0 for DRAM, where workers copy",
        lambda tier: tier.totals.store_seconds,
    ),
    StateFamily(
        "kv_store_evictions_total",
        "Blocks that left the tier, by why: room, quota (of its tenant), asked (llmserve kv evict), corrupt",
        ("tier", "reason"),
        lambda stats: (
            ((tier.name, reason.value), blocks)
            for tier in stats.tiers
            for reason, blocks in tier.evictions.items()
        ),
    ),
    StateFamily(
        "kv_store_outcomes_total",
        "What became of operations. Below DRAM: read and write of a part of a block, done, missing, corrupt, "
        "full or failed. DRAM: reserve, write and lease",
        ("tier", "operation", "outcome"),
        lambda stats: (
            ((tier.name, *operation), count)
            for tier in stats.tiers
            for operation, count in tier.outcomes.items()
        ),
    ),
    StateFamily(
        "kv_store_saved_prefill_seconds_total",
        "What the hits would have cost to compute; of workers that told what a block costs them",
        (),
        lambda stats: [((), stats.saved_prefill_seconds)],
    ),
)


class EvictionAgeCollector(Collector):
    """The histogram of how long ago evicted blocks were used last."""

    def __init__(self, stats: Callable[[], StoreStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "kv_store_eviction_age_seconds",
            "How long ago blocks that went for want of room were used last",
            labels=("tier",),
        )
        for tier in self._stats().tiers:
            ages = tier.eviction_ages
            family.add_metric((tier.name,), _buckets(ages), ages.sum_seconds)
        yield family


def _buckets(ages: Ages) -> list[tuple[str, float]]:
    bounds = [*map(str, ages.bounds_seconds), "+Inf"]
    return list(zip(bounds, accumulate(ages.counts), strict=True))


class KVManagerMetrics:
    def __init__(self, registry: CollectorRegistry, store: Callable[[], StoreStats] = StoreStats) -> None:
        """store: returns the present state of its tiers."""
        gauge = partial(Gauge, registry=registry)
        watched = partial(WatchedCounter, registry=registry)
        self.directory_blocks = gauge(
            "kv_directory_blocks",
            "Distinct block hashes that a worker's device, or a tier of this kvmanager, holds. Every "
            "kvmanager counts all devices, and so it is with leases, orphans, workers and reports: of "
            "several kvmanagers take the maximum, not the sum",
        )
        self.open_leases = gauge("kv_open_leases", "Leases granted and not ended")
        self.leased_blocks = gauge("kv_leased_blocks", "Blocks under open leases")
        self.orphan_blocks = gauge(
            "kv_orphan_blocks",
            "Blocks leased past their expiry, or by a worker that is gone, and not yet written off. "
            "Returns to 0",
        )
        self.store_leases = gauge(
            "kv_store_open_leases", "Leases of prompts that are being loaded. Returns to 0"
        )
        self.store_reserved_blocks = gauge(
            "kv_store_reserved_blocks", "Blocks that are being stored. Returns to 0"
        )
        self.prefetched_blocks_total = watched(
            "kv_prefetched_blocks_total", "Blocks brought up to DRAM for prompts that waited for their turn"
        )
        self.workers = gauge("kv_workers", "Workers whose report stream is open")
        self.watchers = gauge("kv_watchers", "Routers that follow the directory")
        self.reports_total = watched("kv_reports_total", "Reports of workers applied")
        self.resyncs_total = watched("kv_resyncs_total", "Snapshots asked for because a report was missing")
        self.leases_ended_total = watched(
            "kv_leases_ended_total",
            "Leases that ended, by how: released, expired, written_off (its worker is gone, or no longer "
            "knows of it)",
            ("how",),
        )
        self.store = StateCollector(_TIER_FAMILIES, store)
        registry.register(self.store)
        self.eviction_ages = EvictionAgeCollector(store)
        registry.register(self.eviction_ages)
