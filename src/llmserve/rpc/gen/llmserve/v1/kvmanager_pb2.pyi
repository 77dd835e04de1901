from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeaseState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_STATE_UNSPECIFIED: _ClassVar[LeaseState]
    LEASE_STATE_GRANTED: _ClassVar[LeaseState]
    LEASE_STATE_RELEASED: _ClassVar[LeaseState]
    LEASE_STATE_EXPIRED: _ClassVar[LeaseState]
LEASE_STATE_UNSPECIFIED: LeaseState
LEASE_STATE_GRANTED: LeaseState
LEASE_STATE_RELEASED: LeaseState
LEASE_STATE_EXPIRED: LeaseState

class KvReport(_message.Message):
    __slots__ = ("worker_id", "epoch", "sequence", "snapshot", "stored", "removed", "cleared", "leases")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    sequence: int
    snapshot: bool
    stored: _containers.RepeatedScalarFieldContainer[bytes]
    removed: _containers.RepeatedScalarFieldContainer[bytes]
    cleared: bool
    leases: _containers.RepeatedCompositeFieldContainer[LeaseReport]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., snapshot: _Optional[bool] = ..., stored: _Optional[_Iterable[bytes]] = ..., removed: _Optional[_Iterable[bytes]] = ..., cleared: _Optional[bool] = ..., leases: _Optional[_Iterable[_Union[LeaseReport, _Mapping]]] = ...) -> None: ...

class LeaseReport(_message.Message):
    __slots__ = ("lease_id", "state", "blocks", "remaining_seconds")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    state: LeaseState
    blocks: int
    remaining_seconds: float
    def __init__(self, lease_id: _Optional[str] = ..., state: _Optional[_Union[LeaseState, str]] = ..., blocks: _Optional[int] = ..., remaining_seconds: _Optional[float] = ...) -> None: ...

class KvReportAck(_message.Message):
    __slots__ = ("sequence", "resync")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESYNC_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    resync: bool
    def __init__(self, sequence: _Optional[int] = ..., resync: _Optional[bool] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("block_hashes",)
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, block_hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("prefix_blocks",)
    class PrefixBlocksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PREFIX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    prefix_blocks: _containers.ScalarMap[str, int]
    def __init__(self, prefix_blocks: _Optional[_Mapping[str, int]] = ...) -> None: ...

class GetKvStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetKvStatusResponse(_message.Message):
    __slots__ = ("directory_blocks", "workers", "open_leases", "leased_blocks", "orphan_blocks", "tiers", "saved_prefill_seconds")
    DIRECTORY_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_LEASES_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ORPHAN_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SAVED_PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    directory_blocks: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerKvStatus]
    open_leases: int
    leased_blocks: int
    orphan_blocks: int
    tiers: _containers.RepeatedCompositeFieldContainer[TierStatus]
    saved_prefill_seconds: float
    def __init__(self, directory_blocks: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerKvStatus, _Mapping]]] = ..., open_leases: _Optional[int] = ..., leased_blocks: _Optional[int] = ..., orphan_blocks: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[TierStatus, _Mapping]]] = ..., saved_prefill_seconds: _Optional[float] = ...) -> None: ...

class TierStatus(_message.Message):
    __slots__ = ("name", "kind", "blocks", "used_bytes", "capacity_bytes", "pinned_blocks", "queued_bytes", "hit_blocks", "hit_tokens", "load_bytes", "load_seconds", "store_bytes", "store_seconds", "evictions", "outcomes", "trouble")
    class EvictionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HIT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    blocks: int
    used_bytes: int
    capacity_bytes: int
    pinned_blocks: int
    queued_bytes: int
    hit_blocks: int
    hit_tokens: int
    load_bytes: int
    load_seconds: float
    store_bytes: int
    store_seconds: float
    evictions: _containers.ScalarMap[str, int]
    outcomes: _containers.RepeatedCompositeFieldContainer[TierOutcome]
    trouble: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., blocks: _Optional[int] = ..., used_bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., pinned_blocks: _Optional[int] = ..., queued_bytes: _Optional[int] = ..., hit_blocks: _Optional[int] = ..., hit_tokens: _Optional[int] = ..., load_bytes: _Optional[int] = ..., load_seconds: _Optional[float] = ..., store_bytes: _Optional[int] = ..., store_seconds: _Optional[float] = ..., evictions: _Optional[_Mapping[str, int]] = ..., outcomes: _Optional[_Iterable[_Union[TierOutcome, _Mapping]]] = ..., trouble: _Optional[str] = ...) -> None: ...

class TierOutcome(_message.Message):
    __slots__ = ("operation", "result", "count")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    operation: str
    result: str
    count: int
    def __init__(self, operation: _Optional[str] = ..., result: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class WorkerKvStatus(_message.Message):
    __slots__ = ("worker_id", "epoch", "device_blocks", "open_leases", "connected")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    OPEN_LEASES_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    device_blocks: int
    open_leases: int
    connected: bool
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., device_blocks: _Optional[int] = ..., open_leases: _Optional[int] = ..., connected: _Optional[bool] = ...) -> None: ...

class AttachStoreRequest(_message.Message):
    __slots__ = ("worker_id", "epoch", "part_bytes", "part_shapes", "block_tokens", "place")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PART_BYTES_FIELD_NUMBER: _ClassVar[int]
    PART_SHAPES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    part_bytes: _containers.RepeatedScalarFieldContainer[int]
    part_shapes: _containers.RepeatedScalarFieldContainer[str]
    block_tokens: int
    place: str
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., part_bytes: _Optional[_Iterable[int]] = ..., part_shapes: _Optional[_Iterable[str]] = ..., block_tokens: _Optional[int] = ..., place: _Optional[str] = ...) -> None: ...

class AttachStoreResponse(_message.Message):
    __slots__ = ("enabled", "arena", "lease_seconds", "arena_id")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    arena: str
    lease_seconds: float
    arena_id: str
    def __init__(self, enabled: _Optional[bool] = ..., arena: _Optional[str] = ..., lease_seconds: _Optional[float] = ..., arena_id: _Optional[str] = ...) -> None: ...

class PreparePromptRequest(_message.Message):
    __slots__ = ("worker_id", "epoch", "tenant", "block_hashes", "have_blocks", "compute_seconds", "load", "store", "arena_id")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    HAVE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    tenant: str
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    have_blocks: int
    compute_seconds: float
    load: bool
    store: bool
    arena_id: str
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., tenant: _Optional[str] = ..., block_hashes: _Optional[_Iterable[bytes]] = ..., have_blocks: _Optional[int] = ..., compute_seconds: _Optional[float] = ..., load: _Optional[bool] = ..., store: _Optional[bool] = ..., arena_id: _Optional[str] = ...) -> None: ...

class PreparePromptResponse(_message.Message):
    __slots__ = ("lease_id", "loads", "stores")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    STORES_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    loads: _containers.RepeatedCompositeFieldContainer[StoreBlock]
    stores: _containers.RepeatedCompositeFieldContainer[StoreBlock]
    def __init__(self, lease_id: _Optional[str] = ..., loads: _Optional[_Iterable[_Union[StoreBlock, _Mapping]]] = ..., stores: _Optional[_Iterable[_Union[StoreBlock, _Mapping]]] = ...) -> None: ...

class StoreBlock(_message.Message):
    __slots__ = ("index", "slots")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    index: int
    slots: _containers.RepeatedCompositeFieldContainer[StoreSlot]
    def __init__(self, index: _Optional[int] = ..., slots: _Optional[_Iterable[_Union[StoreSlot, _Mapping]]] = ...) -> None: ...

class StoreSlot(_message.Message):
    __slots__ = ("offset", "length_bytes", "generation", "checksum")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length_bytes: int
    generation: int
    checksum: int
    def __init__(self, offset: _Optional[int] = ..., length_bytes: _Optional[int] = ..., generation: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class SettleStoreRequest(_message.Message):
    __slots__ = ("worker_id", "epoch", "commits", "aborts", "releases", "renewals", "corrupt", "arena_id")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    ABORTS_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    RENEWALS_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    commits: _containers.RepeatedCompositeFieldContainer[StoreFill]
    aborts: _containers.RepeatedScalarFieldContainer[bytes]
    releases: _containers.RepeatedScalarFieldContainer[str]
    renewals: _containers.RepeatedScalarFieldContainer[str]
    corrupt: _containers.RepeatedScalarFieldContainer[bytes]
    arena_id: str
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., commits: _Optional[_Iterable[_Union[StoreFill, _Mapping]]] = ..., aborts: _Optional[_Iterable[bytes]] = ..., releases: _Optional[_Iterable[str]] = ..., renewals: _Optional[_Iterable[str]] = ..., corrupt: _Optional[_Iterable[bytes]] = ..., arena_id: _Optional[str] = ...) -> None: ...

class StoreFill(_message.Message):
    __slots__ = ("block_hash", "part", "generation", "checksum")
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    block_hash: bytes
    part: int
    generation: int
    checksum: int
    def __init__(self, block_hash: _Optional[bytes] = ..., part: _Optional[int] = ..., generation: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class SettleStoreResponse(_message.Message):
    __slots__ = ("ended",)
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ended: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ended: _Optional[_Iterable[str]] = ...) -> None: ...

class BlockFilter(_message.Message):
    __slots__ = ("tier", "tenant", "hash_prefix", "pinned")
    TIER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HASH_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    tier: str
    tenant: str
    hash_prefix: str
    pinned: bool
    def __init__(self, tier: _Optional[str] = ..., tenant: _Optional[str] = ..., hash_prefix: _Optional[str] = ..., pinned: _Optional[bool] = ...) -> None: ...

class ListBlocksRequest(_message.Message):
    __slots__ = ("filter", "limit")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    filter: BlockFilter
    limit: int
    def __init__(self, filter: _Optional[_Union[BlockFilter, _Mapping]] = ..., limit: _Optional[int] = ...) -> None: ...

class ListBlocksResponse(_message.Message):
    __slots__ = ("blocks", "total_blocks")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[ListedBlock]
    total_blocks: int
    def __init__(self, blocks: _Optional[_Iterable[_Union[ListedBlock, _Mapping]]] = ..., total_blocks: _Optional[int] = ...) -> None: ...

class ListedBlock(_message.Message):
    __slots__ = ("block_hash", "parent_hash", "tenant", "places")
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    PARENT_HASH_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    block_hash: bytes
    parent_hash: bytes
    tenant: str
    places: _containers.RepeatedCompositeFieldContainer[BlockPlace]
    def __init__(self, block_hash: _Optional[bytes] = ..., parent_hash: _Optional[bytes] = ..., tenant: _Optional[str] = ..., places: _Optional[_Iterable[_Union[BlockPlace, _Mapping]]] = ...) -> None: ...

class BlockPlace(_message.Message):
    __slots__ = ("tier", "bytes", "idle_seconds", "pinned", "in_use")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    tier: str
    bytes: int
    idle_seconds: float
    pinned: bool
    in_use: bool
    def __init__(self, tier: _Optional[str] = ..., bytes: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., pinned: _Optional[bool] = ..., in_use: _Optional[bool] = ...) -> None: ...

class PinBlocksRequest(_message.Message):
    __slots__ = ("filter", "unpin")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    UNPIN_FIELD_NUMBER: _ClassVar[int]
    filter: BlockFilter
    unpin: bool
    def __init__(self, filter: _Optional[_Union[BlockFilter, _Mapping]] = ..., unpin: _Optional[bool] = ...) -> None: ...

class PinBlocksResponse(_message.Message):
    __slots__ = ("changed_blocks", "pinned_blocks")
    CHANGED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PINNED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    changed_blocks: int
    pinned_blocks: int
    def __init__(self, changed_blocks: _Optional[int] = ..., pinned_blocks: _Optional[int] = ...) -> None: ...

class EvictBlocksRequest(_message.Message):
    __slots__ = ("filter",)
    FILTER_FIELD_NUMBER: _ClassVar[int]
    filter: BlockFilter
    def __init__(self, filter: _Optional[_Union[BlockFilter, _Mapping]] = ...) -> None: ...

class EvictBlocksResponse(_message.Message):
    __slots__ = ("evicted_blocks", "evicted_bytes", "pinned_blocks", "busy_blocks")
    EVICTED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    EVICTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BUSY_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    evicted_blocks: int
    evicted_bytes: int
    pinned_blocks: int
    busy_blocks: int
    def __init__(self, evicted_blocks: _Optional[int] = ..., evicted_bytes: _Optional[int] = ..., pinned_blocks: _Optional[int] = ..., busy_blocks: _Optional[int] = ...) -> None: ...

class DropAdapterRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class DropAdapterResponse(_message.Message):
    __slots__ = ("evicted_blocks", "evicted_bytes", "left_blocks")
    EVICTED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    EVICTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEFT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    evicted_blocks: int
    evicted_bytes: int
    left_blocks: int
    def __init__(self, evicted_blocks: _Optional[int] = ..., evicted_bytes: _Optional[int] = ..., left_blocks: _Optional[int] = ...) -> None: ...

class VerifyBlocksRequest(_message.Message):
    __slots__ = ("filter", "share")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    filter: BlockFilter
    share: float
    def __init__(self, filter: _Optional[_Union[BlockFilter, _Mapping]] = ..., share: _Optional[float] = ...) -> None: ...

class VerifyBlocksResponse(_message.Message):
    __slots__ = ("tier", "checked_blocks", "all_blocks", "bytes", "missing_blocks", "unreadable_blocks", "corrupt", "reason")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CHECKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ALL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MISSING_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    tier: str
    checked_blocks: int
    all_blocks: int
    bytes: int
    missing_blocks: int
    unreadable_blocks: int
    corrupt: _containers.RepeatedScalarFieldContainer[bytes]
    reason: str
    def __init__(self, tier: _Optional[str] = ..., checked_blocks: _Optional[int] = ..., all_blocks: _Optional[int] = ..., bytes: _Optional[int] = ..., missing_blocks: _Optional[int] = ..., unreadable_blocks: _Optional[int] = ..., corrupt: _Optional[_Iterable[bytes]] = ..., reason: _Optional[str] = ...) -> None: ...

class ExportBlocksRequest(_message.Message):
    __slots__ = ("filter",)
    FILTER_FIELD_NUMBER: _ClassVar[int]
    filter: BlockFilter
    def __init__(self, filter: _Optional[_Union[BlockFilter, _Mapping]] = ...) -> None: ...

class BlockRecord(_message.Message):
    __slots__ = ("block_hash", "parent_hash", "tenant", "parts", "quantize")
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    PARENT_HASH_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    block_hash: bytes
    parent_hash: bytes
    tenant: str
    parts: _containers.RepeatedCompositeFieldContainer[BlockPart]
    quantize: str
    def __init__(self, block_hash: _Optional[bytes] = ..., parent_hash: _Optional[bytes] = ..., tenant: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[BlockPart, _Mapping]]] = ..., quantize: _Optional[str] = ...) -> None: ...

class BlockPart(_message.Message):
    __slots__ = ("length_bytes", "checksum", "shape")
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    length_bytes: int
    checksum: int
    shape: str
    def __init__(self, length_bytes: _Optional[int] = ..., checksum: _Optional[int] = ..., shape: _Optional[str] = ...) -> None: ...

class BlockPiece(_message.Message):
    __slots__ = ("block", "data", "all_blocks")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ALL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    block: BlockRecord
    data: bytes
    all_blocks: int
    def __init__(self, block: _Optional[_Union[BlockRecord, _Mapping]] = ..., data: _Optional[bytes] = ..., all_blocks: _Optional[int] = ...) -> None: ...

class ImportPiece(_message.Message):
    __slots__ = ("tier", "block", "data")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    tier: str
    block: BlockRecord
    data: bytes
    def __init__(self, tier: _Optional[str] = ..., block: _Optional[_Union[BlockRecord, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportProgress(_message.Message):
    __slots__ = ("received_blocks", "done", "stored_blocks", "present_blocks", "refused_blocks", "tier")
    RECEIVED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    STORED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    received_blocks: int
    done: bool
    stored_blocks: int
    present_blocks: int
    refused_blocks: int
    tier: str
    def __init__(self, received_blocks: _Optional[int] = ..., done: _Optional[bool] = ..., stored_blocks: _Optional[int] = ..., present_blocks: _Optional[int] = ..., refused_blocks: _Optional[int] = ..., tier: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchReports(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[WatchReport]
    def __init__(self, reports: _Optional[_Iterable[_Union[WatchReport, _Mapping]]] = ...) -> None: ...

class WatchReport(_message.Message):
    __slots__ = ("node", "tier", "sequence", "anew", "dropped", "removed", "stored")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ANEW_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    node: str
    tier: str
    sequence: int
    anew: bool
    dropped: bool
    removed: _containers.RepeatedScalarFieldContainer[bytes]
    stored: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, node: _Optional[str] = ..., tier: _Optional[str] = ..., sequence: _Optional[int] = ..., anew: _Optional[bool] = ..., dropped: _Optional[bool] = ..., removed: _Optional[_Iterable[bytes]] = ..., stored: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PrefetchRequest(_message.Message):
    __slots__ = ("worker_id", "tenant", "block_hashes", "wait_seconds")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    tenant: str
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    wait_seconds: float
    def __init__(self, worker_id: _Optional[str] = ..., tenant: _Optional[str] = ..., block_hashes: _Optional[_Iterable[bytes]] = ..., wait_seconds: _Optional[float] = ...) -> None: ...

class PrefetchResponse(_message.Message):
    __slots__ = ("taken",)
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    taken: bool
    def __init__(self, taken: _Optional[bool] = ...) -> None: ...
