from llmserve.rpc.gen.llmserve.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterTier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_TIER_UNSPECIFIED: _ClassVar[AdapterTier]
    ADAPTER_TIER_DEVICE: _ClassVar[AdapterTier]
    ADAPTER_TIER_DRAM: _ClassVar[AdapterTier]
    ADAPTER_TIER_DISK: _ClassVar[AdapterTier]
    ADAPTER_TIER_SOURCE: _ClassVar[AdapterTier]
ADAPTER_TIER_UNSPECIFIED: AdapterTier
ADAPTER_TIER_DEVICE: AdapterTier
ADAPTER_TIER_DRAM: AdapterTier
ADAPTER_TIER_DISK: AdapterTier
ADAPTER_TIER_SOURCE: AdapterTier

class RouterSessionRequests(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[RouterSessionRequest]
    def __init__(self, messages: _Optional[_Iterable[_Union[RouterSessionRequest, _Mapping]]] = ...) -> None: ...

class RouterSessionRequest(_message.Message):
    __slots__ = ("hello", "admit", "first_token", "done", "worker_failed", "progress", "models", "answer", "age_seconds")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ADMIT_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FAILED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    admit: Admit
    first_token: FirstToken
    done: Done
    worker_failed: WorkerFailed
    progress: Progress
    models: AnsweringModels
    answer: Answer
    age_seconds: float
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., admit: _Optional[_Union[Admit, _Mapping]] = ..., first_token: _Optional[_Union[FirstToken, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., worker_failed: _Optional[_Union[WorkerFailed, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., models: _Optional[_Union[AnsweringModels, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., age_seconds: _Optional[float] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("apiserver_id", "held")
    APISERVER_ID_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    apiserver_id: str
    held: _containers.RepeatedCompositeFieldContainer[HeldPlacement]
    def __init__(self, apiserver_id: _Optional[str] = ..., held: _Optional[_Iterable[_Union[HeldPlacement, _Mapping]]] = ...) -> None: ...

class HeldPlacement(_message.Message):
    __slots__ = ("request_id", "tenant", "placement", "prompt_tokens", "max_output_tokens", "choices", "adapter", "key_limits", "output_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    KEY_LIMITS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    placement: Placement
    prompt_tokens: int
    max_output_tokens: int
    choices: int
    adapter: str
    key_limits: KeyLimits
    output_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., placement: _Optional[_Union[Placement, _Mapping]] = ..., prompt_tokens: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., choices: _Optional[int] = ..., adapter: _Optional[str] = ..., key_limits: _Optional[_Union[KeyLimits, _Mapping]] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class KeyLimits(_message.Message):
    __slots__ = ("key", "requests_per_second", "tokens_per_second", "max_requests_in_flight")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    key: str
    requests_per_second: float
    tokens_per_second: float
    max_requests_in_flight: int
    def __init__(self, key: _Optional[str] = ..., requests_per_second: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., max_requests_in_flight: _Optional[int] = ...) -> None: ...

class Admit(_message.Message):
    __slots__ = ("request_id", "tenant", "model", "prompt_tokens", "max_output_tokens", "block_hashes", "priority", "timeout_seconds", "excluded_workers", "block_tokens", "choices", "adapter", "key_limits", "again", "traceparent")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_WORKERS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    KEY_LIMITS_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    model: str
    prompt_tokens: int
    max_output_tokens: int
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    priority: int
    timeout_seconds: float
    excluded_workers: _containers.RepeatedScalarFieldContainer[str]
    block_tokens: int
    choices: int
    adapter: str
    key_limits: KeyLimits
    again: bool
    traceparent: str
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., block_hashes: _Optional[_Iterable[bytes]] = ..., priority: _Optional[int] = ..., timeout_seconds: _Optional[float] = ..., excluded_workers: _Optional[_Iterable[str]] = ..., block_tokens: _Optional[int] = ..., choices: _Optional[int] = ..., adapter: _Optional[str] = ..., key_limits: _Optional[_Union[KeyLimits, _Mapping]] = ..., again: _Optional[bool] = ..., traceparent: _Optional[str] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("request_id", "output_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    output_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("request_id", "outcome", "output_tokens", "cached_tokens", "handover_seconds")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    outcome: _common_pb2.Outcome
    output_tokens: int
    cached_tokens: int
    handover_seconds: float
    def __init__(self, request_id: _Optional[str] = ..., outcome: _Optional[_Union[_common_pb2.Outcome, str]] = ..., output_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., handover_seconds: _Optional[float] = ...) -> None: ...

class AnsweringModels(_message.Message):
    __slots__ = ("names", "failed")
    class FailedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAMES_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    failed: _containers.ScalarMap[str, str]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., failed: _Optional[_Mapping[str, str]] = ...) -> None: ...

class WorkerFailed(_message.Message):
    __slots__ = ("worker_id", "epoch", "reason", "stalled")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    reason: str
    stalled: bool
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., reason: _Optional[str] = ..., stalled: _Optional[bool] = ...) -> None: ...

class RouterSessionResponses(_message.Message):
    __slots__ = ("messages", "places_wanted")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PLACES_WANTED_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[RouterSessionResponse]
    places_wanted: bool
    def __init__(self, messages: _Optional[_Iterable[_Union[RouterSessionResponse, _Mapping]]] = ..., places_wanted: _Optional[bool] = ...) -> None: ...

class RouterSessionResponse(_message.Message):
    __slots__ = ("placed", "refused", "state", "question")
    PLACED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    placed: Placed
    refused: Refused
    state: ClusterState
    question: Question
    def __init__(self, placed: _Optional[_Union[Placed, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., state: _Optional[_Union[ClusterState, _Mapping]] = ..., question: _Optional[_Union[Question, _Mapping]] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("prefill", "decode", "predicted_cached_tokens", "push")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    prefill: _common_pb2.WorkerInfo
    decode: _common_pb2.WorkerInfo
    predicted_cached_tokens: int
    push: bool
    def __init__(self, prefill: _Optional[_Union[_common_pb2.WorkerInfo, _Mapping]] = ..., decode: _Optional[_Union[_common_pb2.WorkerInfo, _Mapping]] = ..., predicted_cached_tokens: _Optional[int] = ..., push: _Optional[bool] = ...) -> None: ...

class Placed(_message.Message):
    __slots__ = ("request_id", "placement", "queue_seconds", "report")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    placement: Placement
    queue_seconds: float
    report: PlacementReport
    def __init__(self, request_id: _Optional[str] = ..., placement: _Optional[_Union[Placement, _Mapping]] = ..., queue_seconds: _Optional[float] = ..., report: _Optional[_Union[PlacementReport, _Mapping]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("request_id", "outcome", "error", "message", "retry_after_seconds")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    outcome: _common_pb2.Outcome
    error: str
    message: str
    retry_after_seconds: float
    def __init__(self, request_id: _Optional[str] = ..., outcome: _Optional[_Union[_common_pb2.Outcome, str]] = ..., error: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class ClusterState(_message.Message):
    __slots__ = ("workers", "epoch", "adapters", "models")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[_common_pb2.WorkerInfo]
    epoch: int
    adapters: NamedAdapters
    models: ServedModels
    def __init__(self, workers: _Optional[_Iterable[_Union[_common_pb2.WorkerInfo, _Mapping]]] = ..., epoch: _Optional[int] = ..., adapters: _Optional[_Union[NamedAdapters, _Mapping]] = ..., models: _Optional[_Union[ServedModels, _Mapping]] = ...) -> None: ...

class ServedModels(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ServedModel]
    def __init__(self, models: _Optional[_Iterable[_Union[ServedModel, _Mapping]]] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("name", "entry", "directory", "declared", "ready")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    name: str
    entry: str
    directory: str
    declared: bool
    ready: bool
    def __init__(self, name: _Optional[str] = ..., entry: _Optional[str] = ..., directory: _Optional[str] = ..., declared: _Optional[bool] = ..., ready: _Optional[bool] = ...) -> None: ...

class NamedAdapters(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[NamedAdapter]
    def __init__(self, adapters: _Optional[_Iterable[_Union[NamedAdapter, _Mapping]]] = ...) -> None: ...

class NamedAdapter(_message.Message):
    __slots__ = ("name", "digest", "parent", "source", "rank", "size_bytes", "number")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    parent: str
    source: str
    rank: int
    size_bytes: int
    number: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., parent: _Optional[str] = ..., source: _Optional[str] = ..., rank: _Optional[int] = ..., size_bytes: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.WorkerInfo
    def __init__(self, worker: _Optional[_Union[_common_pb2.WorkerInfo, _Mapping]] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("heartbeat_seconds", "expiry_seconds")
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPIRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    heartbeat_seconds: float
    expiry_seconds: float
    def __init__(self, heartbeat_seconds: _Optional[float] = ..., expiry_seconds: _Optional[float] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("worker_id", "epoch", "load", "members_version", "draining", "adapters_version", "adapters")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_VERSION_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    load: _common_pb2.WorkerLoad
    members_version: int
    draining: bool
    adapters_version: int
    adapters: AdapterReports
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., load: _Optional[_Union[_common_pb2.WorkerLoad, _Mapping]] = ..., members_version: _Optional[int] = ..., draining: _Optional[bool] = ..., adapters_version: _Optional[int] = ..., adapters: _Optional[_Union[AdapterReports, _Mapping]] = ...) -> None: ...

class AdapterReports(_message.Message):
    __slots__ = ("reports", "changes_only", "ended")
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_ONLY_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[AdapterReport]
    changes_only: bool
    ended: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, reports: _Optional[_Iterable[_Union[AdapterReport, _Mapping]]] = ..., changes_only: _Optional[bool] = ..., ended: _Optional[_Iterable[int]] = ...) -> None: ...

class AdapterReport(_message.Message):
    __slots__ = ("number", "digest", "rank", "size_bytes", "tier", "running", "load_seconds", "error", "message")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: str
    rank: int
    size_bytes: int
    tier: AdapterTier
    running: int
    load_seconds: float
    error: str
    message: str
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[str] = ..., rank: _Optional[int] = ..., size_bytes: _Optional[int] = ..., tier: _Optional[_Union[AdapterTier, str]] = ..., running: _Optional[int] = ..., load_seconds: _Optional[float] = ..., error: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class AdapterOrders(_message.Message):
    __slots__ = ("orders",)
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[AdapterOrder]
    def __init__(self, orders: _Optional[_Iterable[_Union[AdapterOrder, _Mapping]]] = ...) -> None: ...

class AdapterOrder(_message.Message):
    __slots__ = ("number", "source", "digest", "tier", "pinned", "asked")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    number: int
    source: str
    digest: str
    tier: AdapterTier
    pinned: bool
    asked: int
    def __init__(self, number: _Optional[int] = ..., source: _Optional[str] = ..., digest: _Optional[str] = ..., tier: _Optional[_Union[AdapterTier, str]] = ..., pinned: _Optional[bool] = ..., asked: _Optional[int] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("members_version", "kv_peers", "drain", "adapters_version", "adapters", "heartbeat_seconds", "log_level")
    MEMBERS_VERSION_FIELD_NUMBER: _ClassVar[int]
    KV_PEERS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_VERSION_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOG_LEVEL_FIELD_NUMBER: _ClassVar[int]
    members_version: int
    kv_peers: _containers.RepeatedCompositeFieldContainer[KvPeer]
    drain: DrainOrder
    adapters_version: int
    adapters: AdapterOrders
    heartbeat_seconds: float
    log_level: str
    def __init__(self, members_version: _Optional[int] = ..., kv_peers: _Optional[_Iterable[_Union[KvPeer, _Mapping]]] = ..., drain: _Optional[_Union[DrainOrder, _Mapping]] = ..., adapters_version: _Optional[int] = ..., adapters: _Optional[_Union[AdapterOrders, _Mapping]] = ..., heartbeat_seconds: _Optional[float] = ..., log_level: _Optional[str] = ...) -> None: ...

class KvPeer(_message.Message):
    __slots__ = ("worker_id", "epoch", "endpoints")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., endpoints: _Optional[_Iterable[str]] = ...) -> None: ...

class DeregisterRequest(_message.Message):
    __slots__ = ("worker_id", "epoch")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class DeregisterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterStatusResponse(_message.Message):
    __slots__ = ("workers", "queued_requests", "running_requests", "apiservers", "prefix_index", "leads", "leader", "epoch", "state_trouble", "tenants", "budgets", "queue_limit_requests")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    APISERVERS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_INDEX_FIELD_NUMBER: _ClassVar[int]
    LEADS_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATE_TROUBLE_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LIMIT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    queued_requests: int
    running_requests: int
    apiservers: int
    prefix_index: PrefixIndexStatus
    leads: bool
    leader: str
    epoch: int
    state_trouble: str
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatus]
    budgets: _containers.RepeatedCompositeFieldContainer[BudgetStatus]
    queue_limit_requests: int
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., queued_requests: _Optional[int] = ..., running_requests: _Optional[int] = ..., apiservers: _Optional[int] = ..., prefix_index: _Optional[_Union[PrefixIndexStatus, _Mapping]] = ..., leads: _Optional[bool] = ..., leader: _Optional[str] = ..., epoch: _Optional[int] = ..., state_trouble: _Optional[str] = ..., tenants: _Optional[_Iterable[_Union[TenantStatus, _Mapping]]] = ..., budgets: _Optional[_Iterable[_Union[BudgetStatus, _Mapping]]] = ..., queue_limit_requests: _Optional[int] = ...) -> None: ...

class PrefixIndexStatus(_message.Message):
    __slots__ = ("followed", "away", "blocks", "proof", "problem", "hottest", "prompt_tokens", "cached_tokens")
    FOLLOWED_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    HOTTEST_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    followed: _containers.RepeatedScalarFieldContainer[str]
    away: _containers.RepeatedScalarFieldContainer[str]
    blocks: int
    proof: str
    problem: str
    hottest: _containers.RepeatedCompositeFieldContainer[HotPrefix]
    prompt_tokens: int
    cached_tokens: int
    def __init__(self, followed: _Optional[_Iterable[str]] = ..., away: _Optional[_Iterable[str]] = ..., blocks: _Optional[int] = ..., proof: _Optional[str] = ..., problem: _Optional[str] = ..., hottest: _Optional[_Iterable[_Union[HotPrefix, _Mapping]]] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class HotPrefix(_message.Message):
    __slots__ = ("block_hash", "tenant", "blocks", "tokens", "uses", "idle_seconds")
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    block_hash: bytes
    tenant: str
    blocks: int
    tokens: int
    uses: int
    idle_seconds: float
    def __init__(self, block_hash: _Optional[bytes] = ..., tenant: _Optional[str] = ..., blocks: _Optional[int] = ..., tokens: _Optional[int] = ..., uses: _Optional[int] = ..., idle_seconds: _Optional[float] = ...) -> None: ...

class PromiseRequest(_message.Message):
    __slots__ = ("leader", "epoch", "seconds")
    LEADER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    leader: str
    epoch: int
    seconds: float
    def __init__(self, leader: _Optional[str] = ..., epoch: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class PromiseResponse(_message.Message):
    __slots__ = ("promised",)
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    promised: bool
    def __init__(self, promised: _Optional[bool] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("info", "load", "available", "reason", "heartbeat_age_seconds", "placed_requests", "draining", "slow", "speeds")
    INFO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PLACED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    SLOW_FIELD_NUMBER: _ClassVar[int]
    SPEEDS_FIELD_NUMBER: _ClassVar[int]
    info: _common_pb2.WorkerInfo
    load: _common_pb2.WorkerLoad
    available: bool
    reason: str
    heartbeat_age_seconds: float
    placed_requests: int
    draining: bool
    slow: bool
    speeds: _containers.RepeatedCompositeFieldContainer[MeasuredSpeed]
    def __init__(self, info: _Optional[_Union[_common_pb2.WorkerInfo, _Mapping]] = ..., load: _Optional[_Union[_common_pb2.WorkerLoad, _Mapping]] = ..., available: _Optional[bool] = ..., reason: _Optional[str] = ..., heartbeat_age_seconds: _Optional[float] = ..., placed_requests: _Optional[int] = ..., draining: _Optional[bool] = ..., slow: _Optional[bool] = ..., speeds: _Optional[_Iterable[_Union[MeasuredSpeed, _Mapping]]] = ...) -> None: ...

class MeasuredSpeed(_message.Message):
    __slots__ = ("stage", "seconds", "peers_seconds")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEERS_SECONDS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    seconds: float
    peers_seconds: float
    def __init__(self, stage: _Optional[str] = ..., seconds: _Optional[float] = ..., peers_seconds: _Optional[float] = ...) -> None: ...

class DrainOrder(_message.Message):
    __slots__ = ("drain", "timeout_seconds")
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    drain: bool
    timeout_seconds: float
    def __init__(self, drain: _Optional[bool] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("worker_id", "order")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    order: DrainOrder
    def __init__(self, worker_id: _Optional[str] = ..., order: _Optional[_Union[DrainOrder, _Mapping]] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("running_requests", "others", "timeout_seconds")
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    running_requests: int
    others: int
    timeout_seconds: float
    def __init__(self, running_requests: _Optional[int] = ..., others: _Optional[int] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class PlacementReport(_message.Message):
    __slots__ = ("requests_ahead", "used_up_seconds", "tenant_weight", "tenant_share", "candidates", "predicted_cached_tokens", "note", "handover", "prefetches")
    class UsedUpSecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    REQUESTS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    USED_UP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TENANT_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TENANT_SHARE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    PREFETCHES_FIELD_NUMBER: _ClassVar[int]
    requests_ahead: int
    used_up_seconds: _containers.ScalarMap[str, float]
    tenant_weight: float
    tenant_share: float
    candidates: _containers.RepeatedCompositeFieldContainer[PlacementCandidate]
    predicted_cached_tokens: int
    note: str
    handover: HandoverChoice
    prefetches: _containers.RepeatedCompositeFieldContainer[AdapterPrefetch]
    def __init__(self, requests_ahead: _Optional[int] = ..., used_up_seconds: _Optional[_Mapping[str, float]] = ..., tenant_weight: _Optional[float] = ..., tenant_share: _Optional[float] = ..., candidates: _Optional[_Iterable[_Union[PlacementCandidate, _Mapping]]] = ..., predicted_cached_tokens: _Optional[int] = ..., note: _Optional[str] = ..., handover: _Optional[_Union[HandoverChoice, _Mapping]] = ..., prefetches: _Optional[_Iterable[_Union[AdapterPrefetch, _Mapping]]] = ...) -> None: ...

class AdapterPrefetch(_message.Message):
    __slots__ = ("worker_id", "tier", "seconds")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    tier: AdapterTier
    seconds: float
    def __init__(self, worker_id: _Optional[str] = ..., tier: _Optional[_Union[AdapterTier, str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class HandoverChoice(_message.Message):
    __slots__ = ("push", "reason", "pull_seconds", "push_seconds")
    PUSH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PULL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PUSH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    push: bool
    reason: str
    pull_seconds: float
    push_seconds: float
    def __init__(self, push: _Optional[bool] = ..., reason: _Optional[str] = ..., pull_seconds: _Optional[float] = ..., push_seconds: _Optional[float] = ...) -> None: ...

class PlacementCandidate(_message.Message):
    __slots__ = ("prefill", "decode", "seconds")
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    prefill: str
    decode: str
    seconds: _containers.ScalarMap[str, float]
    def __init__(self, prefill: _Optional[str] = ..., decode: _Optional[str] = ..., seconds: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("number", "manifest", "record", "echo", "rows")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    number: int
    manifest: ManifestQuestion
    record: RecordQuestion
    echo: Echo
    rows: RowsQuestion
    def __init__(self, number: _Optional[int] = ..., manifest: _Optional[_Union[ManifestQuestion, _Mapping]] = ..., record: _Optional[_Union[RecordQuestion, _Mapping]] = ..., echo: _Optional[_Union[Echo, _Mapping]] = ..., rows: _Optional[_Union[RowsQuestion, _Mapping]] = ...) -> None: ...

class Echo(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ManifestQuestion(_message.Message):
    __slots__ = ("text", "file", "only_check")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    ONLY_CHECK_FIELD_NUMBER: _ClassVar[int]
    text: str
    file: str
    only_check: bool
    def __init__(self, text: _Optional[str] = ..., file: _Optional[str] = ..., only_check: _Optional[bool] = ...) -> None: ...

class RecordQuestion(_message.Message):
    __slots__ = ("request_id", "tenant")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class RowsQuestion(_message.Message):
    __slots__ = ("tenant", "after", "limit")
    class AfterEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    after: _containers.ScalarMap[str, int]
    limit: int
    def __init__(self, tenant: _Optional[str] = ..., after: _Optional[_Mapping[str, int]] = ..., limit: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("number", "error", "message", "record")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    number: int
    error: str
    message: str
    record: bytes
    def __init__(self, number: _Optional[int] = ..., error: _Optional[str] = ..., message: _Optional[str] = ..., record: _Optional[bytes] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ("text", "file", "only_check")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    ONLY_CHECK_FIELD_NUMBER: _ClassVar[int]
    text: str
    file: str
    only_check: bool
    def __init__(self, text: _Optional[str] = ..., file: _Optional[str] = ..., only_check: _Optional[bool] = ...) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("live", "restart", "failed")
    LIVE_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    live: _containers.RepeatedCompositeFieldContainer[ManifestChange]
    restart: _containers.RepeatedCompositeFieldContainer[NeedsRestart]
    failed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, live: _Optional[_Iterable[_Union[ManifestChange, _Mapping]]] = ..., restart: _Optional[_Iterable[_Union[NeedsRestart, _Mapping]]] = ..., failed: _Optional[_Iterable[str]] = ...) -> None: ...

class ManifestChange(_message.Message):
    __slots__ = ("path", "before", "after")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    path: str
    before: str
    after: str
    def __init__(self, path: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class NeedsRestart(_message.Message):
    __slots__ = ("path", "processes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    path: str
    processes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, path: _Optional[str] = ..., processes: _Optional[_Iterable[str]] = ...) -> None: ...

class ListRequestsRequest(_message.Message):
    __slots__ = ("asker", "rows")
    ASKER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    asker: str
    rows: RowsQuestion
    def __init__(self, asker: _Optional[str] = ..., rows: _Optional[_Union[RowsQuestion, _Mapping]] = ...) -> None: ...

class ListRequestsResponse(_message.Message):
    __slots__ = ("answers", "silent")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedScalarFieldContainer[bytes]
    silent: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, answers: _Optional[_Iterable[bytes]] = ..., silent: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: RecordQuestion
    def __init__(self, record: _Optional[_Union[RecordQuestion, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    def __init__(self, record: _Optional[bytes] = ...) -> None: ...

class TenantStatus(_message.Message):
    __slots__ = ("tenant", "weight", "queued_requests", "running_requests", "dispatched_requests", "refused_requests", "queue_seconds", "served_tokens")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DISPATCHED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SERVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    weight: float
    queued_requests: int
    running_requests: int
    dispatched_requests: int
    refused_requests: int
    queue_seconds: float
    served_tokens: int
    def __init__(self, tenant: _Optional[str] = ..., weight: _Optional[float] = ..., queued_requests: _Optional[int] = ..., running_requests: _Optional[int] = ..., dispatched_requests: _Optional[int] = ..., refused_requests: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., served_tokens: _Optional[int] = ...) -> None: ...

class BudgetStatus(_message.Message):
    __slots__ = ("name", "used_ratio", "refused_requests")
    NAME_FIELD_NUMBER: _ClassVar[int]
    USED_RATIO_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    used_ratio: float
    refused_requests: int
    def __init__(self, name: _Optional[str] = ..., used_ratio: _Optional[float] = ..., refused_requests: _Optional[int] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("model", "name", "source", "pin", "prefetch", "implicit")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    IMPLICIT_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    source: str
    pin: bool
    prefetch: AdapterTier
    implicit: bool
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ..., source: _Optional[str] = ..., pin: _Optional[bool] = ..., prefetch: _Optional[_Union[AdapterTier, str]] = ..., implicit: _Optional[bool] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: AdapterStatus
    def __init__(self, adapter: _Optional[_Union[AdapterStatus, _Mapping]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("model", "name", "wait")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    wait: bool
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: AdapterStatus
    def __init__(self, adapter: _Optional[_Union[AdapterStatus, _Mapping]] = ...) -> None: ...

class KeepAdapterRequest(_message.Message):
    __slots__ = ("model", "name", "tier", "pin", "wait")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    tier: AdapterTier
    pin: bool
    wait: bool
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ..., tier: _Optional[_Union[AdapterTier, str]] = ..., pin: _Optional[bool] = ..., wait: _Optional[bool] = ...) -> None: ...

class KeepAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: AdapterStatus
    def __init__(self, adapter: _Optional[_Union[AdapterStatus, _Mapping]] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterStatus]
    def __init__(self, adapters: _Optional[_Iterable[_Union[AdapterStatus, _Mapping]]] = ...) -> None: ...

class AdapterStatus(_message.Message):
    __slots__ = ("adapter", "state", "error", "pinned", "running_requests", "places")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    adapter: NamedAdapter
    state: str
    error: str
    pinned: bool
    running_requests: int
    places: _containers.RepeatedCompositeFieldContainer[AdapterPlace]
    def __init__(self, adapter: _Optional[_Union[NamedAdapter, _Mapping]] = ..., state: _Optional[str] = ..., error: _Optional[str] = ..., pinned: _Optional[bool] = ..., running_requests: _Optional[int] = ..., places: _Optional[_Iterable[_Union[AdapterPlace, _Mapping]]] = ...) -> None: ...

class AdapterPlace(_message.Message):
    __slots__ = ("worker_id", "report")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    report: AdapterReport
    def __init__(self, worker_id: _Optional[str] = ..., report: _Optional[_Union[AdapterReport, _Mapping]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("entry", "swap", "pull")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    SWAP_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    entry: str
    swap: str
    pull: bool
    def __init__(self, entry: _Optional[str] = ..., swap: _Optional[str] = ..., pull: _Optional[bool] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("number", "name", "source", "state", "detail", "error", "message", "declared", "swap", "requests")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    SWAP_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    source: str
    state: str
    detail: str
    error: str
    message: str
    declared: bool
    swap: str
    requests: int
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., source: _Optional[str] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., error: _Optional[str] = ..., message: _Optional[str] = ..., declared: _Optional[bool] = ..., swap: _Optional[str] = ..., requests: _Optional[int] = ...) -> None: ...

class FollowModelsRequest(_message.Message):
    __slots__ = ("version", "reports")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    version: int
    reports: _containers.RepeatedCompositeFieldContainer[ModelReport]
    def __init__(self, version: _Optional[int] = ..., reports: _Optional[_Iterable[_Union[ModelReport, _Mapping]]] = ...) -> None: ...

class FollowModelsResponse(_message.Message):
    __slots__ = ("version", "orders")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    version: int
    orders: _containers.RepeatedCompositeFieldContainer[ModelOrder]
    def __init__(self, version: _Optional[int] = ..., orders: _Optional[_Iterable[_Union[ModelOrder, _Mapping]]] = ...) -> None: ...

class ModelOrder(_message.Message):
    __slots__ = ("number", "name", "entry", "declared", "may_start", "swap", "pull")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    MAY_START_FIELD_NUMBER: _ClassVar[int]
    SWAP_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    entry: str
    declared: bool
    may_start: bool
    swap: str
    pull: bool
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., entry: _Optional[str] = ..., declared: _Optional[bool] = ..., may_start: _Optional[bool] = ..., swap: _Optional[str] = ..., pull: _Optional[bool] = ...) -> None: ...

class ModelReport(_message.Message):
    __slots__ = ("number", "state", "detail", "directory", "error", "message")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    number: int
    state: str
    detail: str
    directory: str
    error: str
    message: str
    def __init__(self, number: _Optional[int] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., directory: _Optional[str] = ..., error: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
