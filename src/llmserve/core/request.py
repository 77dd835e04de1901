"""A request as an engine sees it, tokens in, tokens out; and what an engine reports of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from msgspec import Struct

from llmserve.core.adapters import BASE_MODEL, AdapterLoad
from llmserve.core.ids import NO_TENANT, AdapterDigest, LeaseId, RequestId, TenantId, WorkerId
from llmserve.core.stats import SpeculationReport

# A priority beyond this counts as this, whatever clients send.
MOST_PRIORITY = 10


class Outcome(StrEnum):
    """How a request ends. The apiserver counts one outcome for each request."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"  # the client went away
    REJECTED = "rejected"  # before the queue
    EVICTED = "evicted"  # after the queue, before a placement
    FAILED = "failed"


class WorkerRole(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"


@dataclass(frozen=True, slots=True)
class KvPeer:
    """A worker from which KV can be fetched. endpoints: "host:port" of the side channel of each
    tensor-parallel rank."""

    worker_id: WorkerId
    epoch: int
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairStatus:
    """A row of the matrix: this worker moves KV to or from `peer`, a worker or a KV manager on another host,
    over `transport`.

    small_seconds and bytes_per_second: those of the last probe that worked (0: none did). transfers, bytes
    and seconds: what requests moved. failures: of transfers and probes. breaker: closed, open or
    half-open. reason: why it opened. chosen: the next request goes this way. A peer that cannot be
    reached, or does not fit, has one row: breaker "refused", without a transport. A transport that cannot
    be used on this machine has one row: breaker "unavailable", without a peer. So has memory of a KV manager
    that this worker could not pin for its device.
    """

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


@dataclass(frozen=True, slots=True)
class SamplingLimits:
    """Limits that every engine obeys, whatever its own sampling parameters are.

    stop_token_ids: with the end-of-sequence token unless the request ignores it.
    """

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """sampling_params is the engine's own encoding (vLLM: msgpack of SamplingParams), opaque here. So is
    pooling_params (vLLM: msgpack of PoolingParams); with it, the request is for a pooled output, not tokens.

    cache_salt is the hex digest of the KV namespace (core/blocks.py). kv_transfer_params asks the
    engine to hand its KV over (`{"do_remote_decode": true}`), or to fetch it (a PullParams), or to
    wait until it is pushed (a PushParams). tenant: whose blocks they are in the KV store; what has no
    namespace or no tenant stays out of it. traceparent: W3C, of the span that asks for it; empty: not traced.
    """

    request_id: RequestId
    prompt_token_ids: Sequence[int]
    limits: SamplingLimits
    sampling_params: bytes = b""
    cache_salt: str = ""
    tenant: TenantId = NO_TENANT
    adapter: AdapterDigest = BASE_MODEL
    priority: int = 0
    kv_transfer_params: Mapping[str, Any] | None = None
    traceparent: str = ""
    pooling_params: bytes = b""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Row-major little-endian buffers: token_ids int32 [rows, width], logprobs float32
    [rows, width], ranks int32 [rows]. Column 0 is the sampled token."""

    width: int
    token_ids: bytes
    logprobs: bytes
    ranks: bytes


@dataclass(frozen=True, slots=True)
class PooledOutput:
    """What a model makes of a whole prompt: an embedding, or scores. values: float32, little-endian, row by
    row."""

    shape: tuple[int, ...]
    values: bytes


@dataclass(frozen=True, slots=True)
class PrefillStats:
    """Where the KV of a prompt came from: computed = prompt - local - external. cache_creation_tokens:
    those of the computed tokens that the prefix cache keeps."""

    prompt_tokens: int = 0
    local_cached_tokens: int = 0
    external_cached_tokens: int = 0
    cache_creation_tokens: int = 0

    @property
    def cached_tokens(self) -> int:
        """Tokens that were not computed."""
        return self.local_cached_tokens + self.external_cached_tokens


@dataclass(frozen=True, slots=True)
class HandoverReport:
    """How the KV of a request came to the engine that decodes it. transport: empty when none brought it,
    for `reason`. seconds: from the first question to the last valid byte. fallbacks: what failed before,
    as "transport: reason". pushed: prefill wrote the KV while it computed; seconds is then the time of
    writing. ended_unix: Unix time of the end; known at the engine only, 0 elsewhere."""

    transport: str
    bytes: int
    seconds: float
    fallbacks: Sequence[str] = ()
    reason: str = ""
    pushed: bool = False
    ended_unix: float = 0.0


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of the tokens that were proposed for a request (speculative decoding). steps: those in
    which proposals were verified. Each gives one token more than it accepts. switched_off: at the end, the
    engine proposed nothing in steps of some batch size, because that was faster."""

    steps: int
    proposed_tokens: int
    accepted_tokens: int
    switched_off: bool = False


class EngineOutput(Struct, frozen=True):
    """What one engine step added to one request. Two are made for each token, so it is a Struct, which takes
    a tenth of the time of a frozen dataclass. finish_reason: None while the request goes on. handover:
    with the first output of a request that fetched KV. adapter_load: with the first output of a request that
    has an adapter; the worker adds it. acceptance: with the last output of a request, of an
    engine that speculates. pooled: the only output of a request with pooling_params."""

    request_id: RequestId
    token_ids: Sequence[int] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    kv_transfer_params: Mapping[str, Any] | None = None
    prefill_stats: PrefillStats | None = None
    error: str = ""
    handover: HandoverReport | None = None
    adapter_load: AdapterLoad | None = None
    acceptance: Acceptance | None = None
    pooled: PooledOutput | None = None


@dataclass(slots=True)
class EngineLoad:
    """A snapshot for the router. Blocks are the device's; transfers are totals since the start. stalled:
    the worker says that the engine has not answered for so long that it should get no requests. speculation:
    None: the engine has proposed no tokens."""

    running_requests: int = 0
    waiting_requests: int = 0
    used_blocks: int = 0
    leased_blocks: int = 0
    orphan_blocks: int = 0
    transferred_bytes: int = 0
    transfer_failures: int = 0
    last_transport: str = ""
    pairs: Sequence[PairStatus] = ()
    stalled: bool = False
    speculation: SpeculationReport | None = None


class LeaseState(StrEnum):
    """What became of a lease: blocks that a worker holds for another process, for a bounded time."""

    GRANTED = "granted"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """One line of a report to the KV manager (kvmanager.proto: LeaseReport)."""

    lease_id: LeaseId
    state: LeaseState
    blocks: int
    remaining_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class KvEvents:
    """Changes of the device cache in order (cleared, then removed, then stored), and of the leases on its
    blocks."""

    stored: Sequence[bytes] = field(default=())
    removed: Sequence[bytes] = field(default=())
    cleared: bool = False
    leases: Sequence[LeaseChange] = field(default=())
