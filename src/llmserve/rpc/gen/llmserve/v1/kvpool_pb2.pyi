from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReserveOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESERVE_OUTCOME_UNSPECIFIED: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_RESERVED: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_PRESENT: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_BUSY: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_FULL: _ClassVar[ReserveOutcome]
    RESERVE_OUTCOME_TOO_LARGE: _ClassVar[ReserveOutcome]

class PinAnswer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PIN_ANSWER_UNSPECIFIED: _ClassVar[PinAnswer]
    PIN_ANSWER_VALID: _ClassVar[PinAnswer]
    PIN_ANSWER_ENDED: _ClassVar[PinAnswer]
    PIN_ANSWER_UNKNOWN: _ClassVar[PinAnswer]
RESERVE_OUTCOME_UNSPECIFIED: ReserveOutcome
RESERVE_OUTCOME_RESERVED: ReserveOutcome
RESERVE_OUTCOME_PRESENT: ReserveOutcome
RESERVE_OUTCOME_BUSY: ReserveOutcome
RESERVE_OUTCOME_FULL: ReserveOutcome
RESERVE_OUTCOME_TOO_LARGE: ReserveOutcome
PIN_ANSWER_UNSPECIFIED: PinAnswer
PIN_ANSWER_VALID: PinAnswer
PIN_ANSWER_ENDED: PinAnswer
PIN_ANSWER_UNKNOWN: PinAnswer

class AttachPoolRequest(_message.Message):
    __slots__ = ("user", "block_bytes", "boot_id", "pid_namespace", "pid")
    USER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    PID_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    user: str
    block_bytes: _containers.RepeatedScalarFieldContainer[int]
    boot_id: str
    pid_namespace: int
    pid: int
    def __init__(self, user: _Optional[str] = ..., block_bytes: _Optional[_Iterable[int]] = ..., boot_id: _Optional[str] = ..., pid_namespace: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...

class AttachPoolResponse(_message.Message):
    __slots__ = ("arena_id", "description", "transports")
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    arena_id: str
    description: str
    transports: _containers.RepeatedCompositeFieldContainer[PoolTransport]
    def __init__(self, arena_id: _Optional[str] = ..., description: _Optional[str] = ..., transports: _Optional[_Iterable[_Union[PoolTransport, _Mapping]]] = ...) -> None: ...

class PoolTransport(_message.Message):
    __slots__ = ("name", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: bytes
    def __init__(self, name: _Optional[str] = ..., description: _Optional[bytes] = ...) -> None: ...

class PoolSlot(_message.Message):
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

class ReserveSlotsRequest(_message.Message):
    __slots__ = ("arena_id", "user", "keys", "length_bytes", "seconds")
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    arena_id: str
    user: str
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    length_bytes: _containers.RepeatedScalarFieldContainer[int]
    seconds: float
    def __init__(self, arena_id: _Optional[str] = ..., user: _Optional[str] = ..., keys: _Optional[_Iterable[bytes]] = ..., length_bytes: _Optional[_Iterable[int]] = ..., seconds: _Optional[float] = ...) -> None: ...

class ReservedSlot(_message.Message):
    __slots__ = ("outcome", "slot")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    outcome: ReserveOutcome
    slot: PoolSlot
    def __init__(self, outcome: _Optional[_Union[ReserveOutcome, str]] = ..., slot: _Optional[_Union[PoolSlot, _Mapping]] = ...) -> None: ...

class ReserveSlotsResponse(_message.Message):
    __slots__ = ("slots",)
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedCompositeFieldContainer[ReservedSlot]
    def __init__(self, slots: _Optional[_Iterable[_Union[ReservedSlot, _Mapping]]] = ...) -> None: ...

class PoolFill(_message.Message):
    __slots__ = ("key", "generation", "checksum")
    KEY_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    generation: int
    checksum: int
    def __init__(self, key: _Optional[bytes] = ..., generation: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class CommitSlotsRequest(_message.Message):
    __slots__ = ("arena_id", "written", "given_up")
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    arena_id: str
    written: _containers.RepeatedCompositeFieldContainer[PoolFill]
    given_up: _containers.RepeatedCompositeFieldContainer[PoolFill]
    def __init__(self, arena_id: _Optional[str] = ..., written: _Optional[_Iterable[_Union[PoolFill, _Mapping]]] = ..., given_up: _Optional[_Iterable[_Union[PoolFill, _Mapping]]] = ...) -> None: ...

class CommitSlotsResponse(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, stored: _Optional[_Iterable[bool]] = ...) -> None: ...

class PinBlocksRequest(_message.Message):
    __slots__ = ("arena_id", "user", "keys", "seconds")
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    arena_id: str
    user: str
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    seconds: float
    def __init__(self, arena_id: _Optional[str] = ..., user: _Optional[str] = ..., keys: _Optional[_Iterable[bytes]] = ..., seconds: _Optional[float] = ...) -> None: ...

class PinBlocksResponse(_message.Message):
    __slots__ = ("lease_id", "slots")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    slots: _containers.RepeatedCompositeFieldContainer[PoolSlot]
    def __init__(self, lease_id: _Optional[str] = ..., slots: _Optional[_Iterable[_Union[PoolSlot, _Mapping]]] = ...) -> None: ...

class RenewPinRequest(_message.Message):
    __slots__ = ("arena_id", "lease_id", "seconds")
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    arena_id: str
    lease_id: str
    seconds: float
    def __init__(self, arena_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class ReleasePinRequest(_message.Message):
    __slots__ = ("arena_id", "lease_id", "corrupt")
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    arena_id: str
    lease_id: str
    corrupt: _containers.RepeatedCompositeFieldContainer[PoolFill]
    def __init__(self, arena_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., corrupt: _Optional[_Iterable[_Union[PoolFill, _Mapping]]] = ...) -> None: ...

class PinAnswerResponse(_message.Message):
    __slots__ = ("answer",)
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    answer: PinAnswer
    def __init__(self, answer: _Optional[_Union[PinAnswer, str]] = ...) -> None: ...

class GetPoolStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPoolStatusResponse(_message.Message):
    __slots__ = ("arena_id", "stored_blocks", "held_bytes", "used_bytes", "capacity_bytes", "filling_blocks", "leased_blocks", "open_leases", "orphan_blocks", "huge_pages")
    ARENA_ID_FIELD_NUMBER: _ClassVar[int]
    STORED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILLING_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    OPEN_LEASES_FIELD_NUMBER: _ClassVar[int]
    ORPHAN_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HUGE_PAGES_FIELD_NUMBER: _ClassVar[int]
    arena_id: str
    stored_blocks: int
    held_bytes: int
    used_bytes: int
    capacity_bytes: int
    filling_blocks: int
    leased_blocks: int
    open_leases: int
    orphan_blocks: int
    huge_pages: bool
    def __init__(self, arena_id: _Optional[str] = ..., stored_blocks: _Optional[int] = ..., held_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., filling_blocks: _Optional[int] = ..., leased_blocks: _Optional[int] = ..., open_leases: _Optional[int] = ..., orphan_blocks: _Optional[int] = ..., huge_pages: _Optional[bool] = ...) -> None: ...
