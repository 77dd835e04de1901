"""What the KV manager counts."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

from llmserve.core.stats import StoreStats
from llmserve.metrics.registry import WatchedCounter
from llmserve.metrics.store import StoreCollector


class KVManagerMetrics:
    def __init__(self, registry: CollectorRegistry, store: Callable[[], StoreStats] = StoreStats) -> None:
        """store: what its tiers hold and have done, now."""
        self.directory_blocks = Gauge(
            "kv_directory_blocks",
            "Distinct block hashes that a worker's device, or a tier of this kvmanager, holds. Every "
            "kvmanager counts all devices, and so it is with leases, orphans, workers and reports: of "
            "several kvmanagers take the maximum, not the sum",
            registry=registry,
        )
        self.open_leases = Gauge("kv_open_leases", "Leases granted and not ended", registry=registry)
        self.leased_blocks = Gauge("kv_leased_blocks", "Blocks under open leases", registry=registry)
        self.orphan_blocks = Gauge(
            "kv_orphan_blocks",
            "Blocks leased past their expiry, or by a worker that is gone, and not yet written off. "
            "Returns to 0",
            registry=registry,
        )
        self.store_leases = Gauge(
            "kv_store_open_leases", "Leases of prompts that are being loaded. Returns to 0", registry=registry
        )
        self.store_reserved_blocks = Gauge(
            "kv_store_reserved_blocks", "Blocks that are being stored. Returns to 0", registry=registry
        )
        self.prefetched_blocks_total = WatchedCounter(
            "kv_prefetched_blocks_total",
            "Blocks brought up to DRAM for prompts that waited for their turn",
            registry=registry,
        )
        self.workers = Gauge("kv_workers", "Workers whose report stream is open", registry=registry)
        self.watchers = Gauge("kv_watchers", "Routers that follow the directory", registry=registry)
        self.reports_total = WatchedCounter(
            "kv_reports_total", "Reports of workers applied", registry=registry
        )
        self.resyncs_total = WatchedCounter(
            "kv_resyncs_total", "Snapshots asked for because a report was missing", registry=registry
        )
        self.leases_ended_total = WatchedCounter(
            "kv_leases_ended_total",
            "Leases that ended, by how: released, expired, written_off (its worker is gone, or no longer "
            "knows of it)",
            ("how",),
            registry=registry,
        )
        self.store = StoreCollector(store)
        registry.register(self.store)
