"""From the manifest's `storageClasses` to a store."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmserve.config.schema import KvCacheConfig, StorageClass
from llmserve.core.clock import Clock
from llmserve.kvstore.eviction import Admission, EvictionRules, FrequencySketch, LruPolicy, TierBook
from llmserve.kvstore.formats import BlockCodec, BlockFormat, Element, grouped
from llmserve.kvstore.pool.arena import Arena
from llmserve.kvstore.pool.slabs import SlabMap
from llmserve.kvstore.pool.table import PoolTable
from llmserve.kvstore.store.dram import DramTier
from llmserve.kvstore.store.lower import LowerStore
from llmserve.kvstore.store.store import BlockStore
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier

_GIB = 1 << 30
_REMEMBERED_BLOCKS = 1_000_000


@dataclass(frozen=True, slots=True)
class BuiltStore:
    arena: Arena
    store: BlockStore

    async def aclose(self) -> None:
        await self.store.aclose()
        self.arena.close()


def build_store(
    classes: Sequence[StorageClass], kv_cache: KvCacheConfig, cluster: str, clock: Clock
) -> BuiltStore:
    """Errors: StartFailed. One of the classes is dram; the others are in the order of the manifest."""
    rules = EvictionRules(kv_cache.hot_keep_secs, int(kv_cache.tenant_hotset_gb * _GIB))
    book = partial(TierBook, make_policy=LruPolicy, clock=clock, rules=rules)
    (dram,) = (one for one in classes if one.tier == "dram")
    arena = Arena(cluster, int(dram.capacity_gb * _GIB))
    slabs = SlabMap(arena.region.length_bytes)
    tier = DramTier(
        PoolTable(slabs, arena.generations, clock),
        book(slabs.capacity_bytes),
        clock,
        arena.checksum,
        name=dram.name,
    )
    lower = [
        LowerStore(_nvme(one), book(int(one.capacity_gb * _GIB)), _raw, clock, name=one.name)
        for one in classes
        if one.tier == "nvme"
    ]
    admission = Admission(FrequencySketch(_REMEMBERED_BLOCKS))
    return BuiltStore(arena, BlockStore(tier, lower, arena.view, admission))


def _nvme(one: StorageClass) -> NvmeTier:
    assert one.location, "the manifest was checked"
    return NvmeTier(NvmeSettings(Path(one.location), int(one.capacity_gb * _GIB)))


def _raw(part_bytes: int) -> BlockCodec:
    return BlockCodec(grouped(Element.BFLOAT16, part_bytes), BlockFormat())
