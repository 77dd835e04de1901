"""Builds the store that the manifest's `storageClasses` describe."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llmserve.config.conflict import refuse
from llmserve.config.schema import Manifest, StorageClass
from llmserve.core.clock import Clock
from llmserve.core.errors import StartFailed
from llmserve.core.ids import TenantId
from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.kvstore.dram.slots import SlotPool
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction import (
    Admission,
    ArcPolicy,
    EvictionRules,
    FrequencySketch,
    S3FifoPolicy,
    TierIndex,
    WriteMode,
)
from llmserve.kvstore.formats import (
    BlockCodec,
    BlockFormat,
    BlockShape,
    Compress,
    Element,
    KeyRing,
    Quantize,
)
from llmserve.kvstore.store.coding import MakeCodec
from llmserve.kvstore.store.lower_tier import LowerSettings, LowerStore
from llmserve.kvstore.store.refusals import key_sources, lasting_refusals
from llmserve.kvstore.store.store import BlockStore, StoreSettings
from llmserve.kvstore.tiers.base import Tier
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier

_GIB = 1 << 30
_REMEMBERED_BLOCKS = 1_000_000
_BUSY_BYTES = 256 << 20
_BUSY_SHARE = 16  # of DRAM, one in so many: at most a quarter is held for what goes down
_AHEAD_SHARE = 16  # of DRAM, one in so many is kept free
_FASTEST_FIRST = ("nvme", "object")


@dataclass(frozen=True, slots=True)
class BuiltStore:
    """quantize: how engines store blocks in DRAM."""

    arena: Arena
    store: BlockStore
    quantize: Quantize = Quantize.NONE

    async def aclose(self) -> None:
        await self.store.aclose()
        self.arena.close()


@dataclass(frozen=True, slots=True)
class StoreParts:
    """The settings of one kvmanager's store. quota_gb: by tenant. owner: name of this kvmanager among those
    that share a bucket, the same after a restart. environment: variables that may hold keys."""

    classes: Sequence[StorageClass]
    hot_keep_seconds: float
    hotset_gb: float
    quota_gb: Mapping[TenantId, float]
    cluster: str
    owner: str
    environment: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Manifest, process: str, environment: Mapping[str, str]) -> "StoreParts":
        """process: name of this kvmanager, the same after a restart. Each kvmanager has an equal share of
        all."""
        share, cache = 1 / manifest.deployment.replicas.kvmanager, manifest.kv_cache
        quotas = {TenantId(key.tenant): key.kv_quota_gb for key in manifest.security.api_keys}
        return cls(
            [_of_process(one, process, share) for one in manifest.storageClasses],
            cache.hot_keep_secs,
            cache.tenant_hotset_gb * share,
            {tenant: quota * share for tenant, quota in quotas.items() if quota},
            manifest.metadata.name,
            f"{manifest.metadata.name}.{process}",
            environment,
        )


def _of_process(one: StorageClass, process: str, share: float) -> StorageClass:
    """A class with this process's share. Its directory is the same for the first of several as for one
    alone."""
    changes: dict[str, object] = {"capacity_gb": one.capacity_gb * share}
    if one.tier == "nvme":
        changes["location"] = f"{one.location}/{process}"
    return one.model_copy(update=changes)


def build_store(parts: StoreParts, clock: Clock) -> BuiltStore | None:
    """None without classes. Inside a running loop. Errors: ManifestError for what lasts, and StartFailed,
    naming the class."""
    if not parts.classes:
        return None
    refuse(lasting_refusals(parts.classes, parts.environment))
    rules = _rules(parts)
    (dram_class,) = (one for one in parts.classes if one.tier == "dram")
    codecs = {one.name: _codecs(parts, at) for at, one in enumerate(parts.classes)}
    with _named(dram_class):
        arena = Arena(parts.cluster, _capacity_bytes(dram_class))
    slabs = SlabMap(arena.region.length_bytes)
    slots = SlotPool(slabs, arena.generations, arena.checksum, arena.wipe_checksum)
    index = TierIndex(slabs.capacity_bytes, S3FifoPolicy, clock, rules)
    dram = DramTier(slots, index, clock, dram_class.name)
    busy_bytes = min(_BUSY_BYTES, slabs.capacity_bytes // _BUSY_SHARE)
    below = [one for tier in _FASTEST_FIRST for one in parts.classes if one.tier == tier]
    lower = [_lower(parts, one, rules, codecs[one.name], busy_bytes, clock) for one in below]
    admission = Admission(FrequencySketch(_REMEMBERED_BLOCKS))
    settings = StoreSettings(ahead_bytes=slabs.capacity_bytes // _AHEAD_SHARE)
    store = BlockStore(dram, lower, arena.view, admission, settings)
    return BuiltStore(arena, store, Quantize(dram_class.format.quantize))


def _rules(parts: StoreParts) -> EvictionRules:
    quotas = {tenant: int(quota * _GIB) for tenant, quota in parts.quota_gb.items()}
    return EvictionRules(parts.hot_keep_seconds, int(parts.hotset_gb * _GIB), quotas)


def _lower(
    parts: StoreParts,
    one: StorageClass,
    rules: EvictionRules,
    make_codec: MakeCodec,
    busy_bytes: int,
    clock: Clock,
) -> LowerStore:
    is_object = one.tier == "object"
    tier, capacity_bytes = _object(one, parts.owner) if is_object else _nvme(one)
    if is_object:
        rules = EvictionRules(tenant_quota_bytes=rules.tenant_quota_bytes)  # it is not a fast tier
    settings = LowerSettings(WriteMode(one.write), busy_bytes, opens_later=is_object)
    index = TierIndex(capacity_bytes, ArcPolicy, clock, rules)
    return LowerStore(tier, index, make_codec, clock, settings, one.name)


def _nvme(one: StorageClass) -> tuple[Tier, int]:
    assert one.location, "the manifest was checked"
    settings = NvmeSettings(Path(one.location), _capacity_bytes(one))
    return NvmeTier(settings), settings.blob_capacity_bytes


def _object(one: StorageClass, owner: str) -> tuple[Tier, int]:
    # Here: most clusters have no bucket, and the package is an extra.
    from llmserve.kvstore.tiers.object import ObjectSettings, object_tier

    assert one.location, "the manifest was checked"
    settings = ObjectSettings(
        one.location,
        owner,
        _capacity_bytes(one),
        endpoint=one.endpoint or "",
        region=one.region or "",
    )
    return object_tier(settings), settings.blob_capacity_bytes


def _capacity_bytes(one: StorageClass) -> int:
    return int(one.capacity_gb * _GIB)


def _codecs(parts: StoreParts, at: int) -> MakeCodec:
    """The codec of a class. Reads its keys now."""
    wanted = parts.classes[at].format
    sources = key_sources(parts.classes[at])
    form = BlockFormat(Quantize(wanted.quantize), Compress(wanted.compress), encrypt=bool(sources))
    keys = KeyRing.load(sources, parts.environment) if sources else None
    return partial(_codec, form, keys)


def _codec(form: BlockFormat, keys: KeyRing | None, shape: BlockShape) -> BlockCodec:
    """Bytes that are no numbers, such as those of a cache in fp8, are not quantized."""
    if shape.element is Element.OPAQUE:
        form = replace(form, quantize=Quantize.NONE)
    return BlockCodec(shape, form, keys)


@contextmanager
def _named(one: StorageClass) -> Iterator[None]:
    try:
        yield
    except StartFailed as error:
        raise StartFailed(f"storage class '{one.name}' ({one.tier}): {error.message}") from error
