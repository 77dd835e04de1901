from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ROLE_UNSPECIFIED: _ClassVar[WorkerRole]
    WORKER_ROLE_PREFILL: _ClassVar[WorkerRole]
    WORKER_ROLE_DECODE: _ClassVar[WorkerRole]
    WORKER_ROLE_AGGREGATED: _ClassVar[WorkerRole]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_COMPLETED: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]
    OUTCOME_REJECTED: _ClassVar[Outcome]
    OUTCOME_EVICTED: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
WORKER_ROLE_UNSPECIFIED: WorkerRole
WORKER_ROLE_PREFILL: WorkerRole
WORKER_ROLE_DECODE: WorkerRole
WORKER_ROLE_AGGREGATED: WorkerRole
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_COMPLETED: Outcome
OUTCOME_CANCELLED: Outcome
OUTCOME_REJECTED: Outcome
OUTCOME_EVICTED: Outcome
OUTCOME_FAILED: Outcome

class KvShape(_message.Message):
    __slots__ = ("model_revision", "kv_dtype", "layout", "block_size_tokens", "tensor_parallel", "pipeline_parallel", "block_bytes", "computation", "draft_revision")
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    KV_DTYPE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTATION_FIELD_NUMBER: _ClassVar[int]
    DRAFT_REVISION_FIELD_NUMBER: _ClassVar[int]
    model_revision: str
    kv_dtype: str
    layout: str
    block_size_tokens: int
    tensor_parallel: int
    pipeline_parallel: int
    block_bytes: int
    computation: str
    draft_revision: str
    def __init__(self, model_revision: _Optional[str] = ..., kv_dtype: _Optional[str] = ..., layout: _Optional[str] = ..., block_size_tokens: _Optional[int] = ..., tensor_parallel: _Optional[int] = ..., pipeline_parallel: _Optional[int] = ..., block_bytes: _Optional[int] = ..., computation: _Optional[str] = ..., draft_revision: _Optional[str] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("worker_id", "role", "address", "epoch", "model", "kv_shape", "max_model_len_tokens", "total_blocks", "max_concurrency", "transports", "handover_endpoints", "lora", "min_decode_slots")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KV_SHAPE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    MIN_DECODE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    role: WorkerRole
    address: str
    epoch: int
    model: str
    kv_shape: KvShape
    max_model_len_tokens: int
    total_blocks: int
    max_concurrency: int
    transports: _containers.RepeatedScalarFieldContainer[str]
    handover_endpoints: _containers.RepeatedScalarFieldContainer[str]
    lora: LoraShape
    min_decode_slots: int
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[_Union[WorkerRole, str]] = ..., address: _Optional[str] = ..., epoch: _Optional[int] = ..., model: _Optional[str] = ..., kv_shape: _Optional[_Union[KvShape, _Mapping]] = ..., max_model_len_tokens: _Optional[int] = ..., total_blocks: _Optional[int] = ..., max_concurrency: _Optional[int] = ..., transports: _Optional[_Iterable[str]] = ..., handover_endpoints: _Optional[_Iterable[str]] = ..., lora: _Optional[_Union[LoraShape, _Mapping]] = ..., min_decode_slots: _Optional[int] = ...) -> None: ...

class LoraShape(_message.Message):
    __slots__ = ("slots", "max_rank", "target_modules")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    slots: int
    max_rank: int
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, slots: _Optional[int] = ..., max_rank: _Optional[int] = ..., target_modules: _Optional[_Iterable[str]] = ...) -> None: ...

class WorkerLoad(_message.Message):
    __slots__ = ("running_requests", "waiting_requests", "used_blocks", "leased_blocks", "orphan_blocks", "transferred_bytes", "transfer_failures", "last_transport", "pairs", "stalled", "speculation")
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ORPHAN_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FAILURES_FIELD_NUMBER: _ClassVar[int]
    LAST_TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    running_requests: int
    waiting_requests: int
    used_blocks: int
    leased_blocks: int
    orphan_blocks: int
    transferred_bytes: int
    transfer_failures: int
    last_transport: str
    pairs: _containers.RepeatedCompositeFieldContainer[TransportPair]
    stalled: bool
    speculation: Speculation
    def __init__(self, running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., used_blocks: _Optional[int] = ..., leased_blocks: _Optional[int] = ..., orphan_blocks: _Optional[int] = ..., transferred_bytes: _Optional[int] = ..., transfer_failures: _Optional[int] = ..., last_transport: _Optional[str] = ..., pairs: _Optional[_Iterable[_Union[TransportPair, _Mapping]]] = ..., stalled: _Optional[bool] = ..., speculation: _Optional[_Union[Speculation, _Mapping]] = ...) -> None: ...

class Speculation(_message.Message):
    __slots__ = ("verifications", "proposed_tokens", "accepted_tokens", "gains")
    VERIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GAINS_FIELD_NUMBER: _ClassVar[int]
    verifications: int
    proposed_tokens: int
    accepted_tokens: int
    gains: _containers.RepeatedCompositeFieldContainer[BatchGain]
    def __init__(self, verifications: _Optional[int] = ..., proposed_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., gains: _Optional[_Iterable[_Union[BatchGain, _Mapping]]] = ...) -> None: ...

class BatchGain(_message.Message):
    __slots__ = ("batch", "proposes", "gain", "steps")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PROPOSES_FIELD_NUMBER: _ClassVar[int]
    GAIN_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    batch: int
    proposes: bool
    gain: float
    steps: int
    def __init__(self, batch: _Optional[int] = ..., proposes: _Optional[bool] = ..., gain: _Optional[float] = ..., steps: _Optional[int] = ...) -> None: ...

class TransportPair(_message.Message):
    __slots__ = ("peer", "transport", "chosen", "breaker", "reason", "small_seconds", "bytes_per_second", "transfers", "bytes", "seconds", "failures")
    PEER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SMALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    peer: str
    transport: str
    chosen: bool
    breaker: str
    reason: str
    small_seconds: float
    bytes_per_second: float
    transfers: int
    bytes: int
    seconds: float
    failures: int
    def __init__(self, peer: _Optional[str] = ..., transport: _Optional[str] = ..., chosen: _Optional[bool] = ..., breaker: _Optional[str] = ..., reason: _Optional[str] = ..., small_seconds: _Optional[float] = ..., bytes_per_second: _Optional[float] = ..., transfers: _Optional[int] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., failures: _Optional[int] = ...) -> None: ...
