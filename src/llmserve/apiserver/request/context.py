"""What the run of a request is given: its legs, who asks, whom it asks, and where its tokens go.

A request runs as one leg (a worker that does both), or as a prefill leg that draws one token and leases its
KV, and a decode leg that fetches the KV, or waits until it is pushed. `sent` are the tokens that the user
already has. A leg then goes on from prompt + sent, which is how an exact request survives the loss of a
worker. One that is not exact runs again from its prompt (`Replay` in retry.py), unless it is stuck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from llmserve.apiserver.adapters.version import RequestVersion
from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.links.router import RouterLink
from llmserve.apiserver.links.worker import WorkerLinks
from llmserve.apiserver.request.rules import KvIdentity, RetryBudget, StageLimits
from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import LLMServeError
from llmserve.core.ids import AdapterDigest, RequestId, TenantId, background_of
from llmserve.core.request import EngineOutput, EngineRequest
from llmserve.metrics.apiserver import ModelMetrics
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo
from llmserve.scheduler.key_limits import NO_LIMITS, KeyLimits
from llmserve.tracing.base import NO_SPAN, Span, Tracer

HAND_OVER: Mapping[str, Any] = MappingProxyType({"do_remote_decode": True})


@dataclass(frozen=True, slots=True)
class LegContext:
    """request_id: the leg's name at the engine, unique for each attempt. adapter: the version that both legs
    run on."""

    request_id: RequestId
    cache_salt: str
    tenant: TenantId
    sent: Sequence[int] = ()
    adapter: AdapterDigest = BASE_MODEL


class Legs(Protocol):
    """What each engine is asked to do. Implementations: SamplingLegs, PromptLegs."""

    prompt: Sequence[int]
    priority: int
    exact: bool
    """Whether prefill's token may be shown, and tokens so far may become prompt (engine/sampling.py)."""
    stuck: str
    """Why a request of which tokens were sent can go on nowhere else; empty when it can."""

    def remaining_tokens(self, sent: Sequence[int]) -> int: ...
    def prefill(self, context: LegContext, handover: Mapping[str, Any] = HAND_OVER) -> EngineRequest:
        """handover: kv_transfer_params when decode follows. They are left out when this token is the last
        one."""

    def decode(self, context: LegContext, pull_params: Mapping[str, Any] | None) -> EngineRequest: ...
    def decode_ahead(self, context: LegContext, push_params: Mapping[str, Any]) -> EngineRequest:
        """The decode leg that is sent before prefill has drawn its token. It goes on from that if it is
        exact."""

    def whole(self, context: LegContext) -> EngineRequest:
        """The only leg, on a worker that does both."""


class Sink(Protocol):
    """Where a run puts what it gets: the user's side of the request."""

    def push(self, output: EngineOutput) -> bool:
        """Returns whether the request is over for the user: it finished, or a stop string matched."""

    def fail(self, error: LLMServeError) -> None: ...


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all runs of an apiserver share."""

    router: RouterLink
    workers: WorkerLinks
    identity: KvIdentity
    metrics: ModelMetrics
    model: str
    limits: StageLimits
    retries: RetryBudget
    tracer: Tracer


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """Who asks for what. client_salt: the cache_salt field of the client's request. record: what is
    remembered. span: that of the HTTP request. adapter: the version that it runs on. waited_seconds: what has
    passed of its deadline already. background: it is a line of a batch. limits: those of the caller's key."""

    request_id: RequestId
    tenant: TenantId
    client_salt: str = ""
    record: SequenceRecord = field(default_factory=SequenceRecord)
    span: Span = NO_SPAN
    adapter: RequestVersion = field(default_factory=RequestVersion)
    waited_seconds: float = 0.0
    background: bool = False
    limits: KeyLimits = NO_LIMITS

    @property
    def flow(self) -> TenantId:
        """The tenant as the scheduler knows it."""
        return background_of(self.tenant) if self.background else self.tenant


class WorkerFailed(Exception):
    """A leg ended badly; another worker may do better."""

    def __init__(self, worker: WorkerInfo, error: LLMServeError) -> None:
        super().__init__(error.message)
        self.worker, self.error = worker, error
