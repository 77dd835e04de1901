"""The tiers of the store, when they are scraped."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from llmserve.core.stats import EvictReason, StoreStats, TierStats, TierTotals
from llmserve.metrics.kvmanager import KVManagerMetrics


def _page(stats: StoreStats) -> str:
    registry = CollectorRegistry()
    KVManagerMetrics(registry, lambda: stats)
    return generate_latest(registry).decode()


def test_each_tier_has_its_series() -> None:
    disk = TierStats(
        "disk",
        "nvme",
        blocks=3,
        totals=TierTotals(hit_tokens=128, load_bytes=10, load_seconds=0.5),
        evictions={EvictReason.ROOM: 2},
        outcomes={("read", "corrupt"): 1},
    )
    disk.eviction_ages.observe(30.0)
    page = _page(StoreStats((TierStats("memory", "dram"), disk), saved_prefill_seconds=1.5))
    for line in (
        'kv_store_blocks{tier="memory"} 0.0',
        'kv_store_blocks{tier="disk"} 3.0',
        'kv_store_hit_tokens_total{tier="disk"} 128.0',
        'kv_store_load_seconds_total{tier="disk"} 0.5',
        'kv_store_evictions_total{reason="room",tier="disk"} 2.0',
        'kv_store_outcomes_total{operation="read",outcome="corrupt",tier="disk"} 1.0',
        'kv_store_eviction_age_seconds_bucket{le="10.0",tier="disk"} 0.0',
        'kv_store_eviction_age_seconds_bucket{le="60.0",tier="disk"} 1.0',
        'kv_store_eviction_age_seconds_sum{tier="disk"} 30.0',
        "kv_store_saved_prefill_seconds_total 1.5",
    ):
        assert line in page


def test_without_a_store_there_are_none() -> None:
    assert "kv_store_blocks{" not in _page(StoreStats())
