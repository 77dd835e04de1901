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
