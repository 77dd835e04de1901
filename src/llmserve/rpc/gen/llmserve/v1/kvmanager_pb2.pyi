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
    __slots__ = ("directory_blocks", "workers", "open_leases", "leased_blocks", "orphan_blocks")
    DIRECTORY_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    OPEN_LEASES_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ORPHAN_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    directory_blocks: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerKvStatus]
    open_leases: int
    leased_blocks: int
    orphan_blocks: int
    def __init__(self, directory_blocks: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerKvStatus, _Mapping]]] = ..., open_leases: _Optional[int] = ..., leased_blocks: _Optional[int] = ..., orphan_blocks: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("worker_id", "epoch", "part_bytes", "part_shapes")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PART_BYTES_FIELD_NUMBER: _ClassVar[int]
    PART_SHAPES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    part_bytes: _containers.RepeatedScalarFieldContainer[int]
    part_shapes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., part_bytes: _Optional[_Iterable[int]] = ..., part_shapes: _Optional[_Iterable[str]] = ...) -> None: ...

class AttachStoreResponse(_message.Message):
    __slots__ = ("enabled", "arena", "lease_seconds")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    arena: str
    lease_seconds: float
    def __init__(self, enabled: _Optional[bool] = ..., arena: _Optional[str] = ..., lease_seconds: _Optional[float] = ...) -> None: ...

class PreparePromptRequest(_message.Message):
    __slots__ = ("worker_id", "epoch", "tenant", "block_hashes", "have_blocks", "compute_seconds", "load", "store")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    HAVE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    tenant: str
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    have_blocks: int
    compute_seconds: float
    load: bool
    store: bool
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., tenant: _Optional[str] = ..., block_hashes: _Optional[_Iterable[bytes]] = ..., have_blocks: _Optional[int] = ..., compute_seconds: _Optional[float] = ..., load: _Optional[bool] = ..., store: _Optional[bool] = ...) -> None: ...

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
    __slots__ = ("worker_id", "epoch", "commits", "aborts", "releases", "renewals", "corrupt")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    ABORTS_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    RENEWALS_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    commits: _containers.RepeatedCompositeFieldContainer[StoreFill]
    aborts: _containers.RepeatedScalarFieldContainer[bytes]
    releases: _containers.RepeatedScalarFieldContainer[str]
    renewals: _containers.RepeatedScalarFieldContainer[str]
    corrupt: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., commits: _Optional[_Iterable[_Union[StoreFill, _Mapping]]] = ..., aborts: _Optional[_Iterable[bytes]] = ..., releases: _Optional[_Iterable[str]] = ..., renewals: _Optional[_Iterable[str]] = ..., corrupt: _Optional[_Iterable[bytes]] = ...) -> None: ...

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
