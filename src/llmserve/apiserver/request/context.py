"""The legs of one request: what each engine is asked to do for it.

A request runs as one leg (a worker that does both), or as a prefill leg that draws one token and
leases its KV, and a decode leg that fetches it, or waits until it is pushed. `sent` are the tokens the
user already has: a leg then goes on from prompt + sent, which is how an exact request survives the
loss of a worker. One that is not exact runs again from its prompt (replay.py), unless it is stuck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.links.router import RouterLink
from llmserve.apiserver.links.worker import WorkerLinks
from llmserve.apiserver.request.rules import HandoverRule, KvIdentity, RetryBudget, StageLimits
from llmserve.core.errors import LLMServeError
from llmserve.core.ids import RequestId, TenantId
from llmserve.core.request import EngineOutput, EngineRequest
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo
from llmserve.tracing.base import NO_SPAN, Span, Tracer

HAND_OVER: Mapping[str, Any] = MappingProxyType({"do_remote_decode": True})


@dataclass(frozen=True, slots=True)
class LegContext:
    """request_id is the leg's name at the engine, unique for each attempt."""

    request_id: RequestId
    cache_salt: str
    tenant: TenantId
    sent: Sequence[int] = ()


class Legs(Protocol):
    """Implementations: SamplingLegs, and the fake of the tests."""

    prompt: Sequence[int]
    priority: int
    exact: bool
    """Prefill's token may be shown, and tokens so far may become prompt (first_token.py)."""
    stuck: str
    """Why neither that nor running again goes on from tokens that were sent; empty when one does."""

    def remaining_tokens(self, sent: Sequence[int]) -> int: ...
    def prefill(self, context: LegContext, handover: Mapping[str, Any] = HAND_OVER) -> EngineRequest:
        """handover: its kv_transfer_params when decode follows. Without any: its token is the last one."""

    def decode(self, context: LegContext, ticket: Mapping[str, Any] | None) -> EngineRequest: ...
    def decode_ahead(self, context: LegContext, card: Mapping[str, Any]) -> EngineRequest:
        """Sent before prefill has drawn its token, with which decode goes on if that is exact."""

    def whole(self, context: LegContext) -> EngineRequest: ...


class Sink(Protocol):
    """Where a run puts what it gets: the user's side of the request."""

    def push(self, output: EngineOutput) -> bool:
        """True: the request is over for the user (it finished, or a stop string matched)."""

    def fail(self, error: LLMServeError) -> None: ...


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all runs of an apiserver share."""

    router: RouterLink
    handover: HandoverRule
    workers: WorkerLinks
    identity: KvIdentity
    metrics: ApiserverMetrics
    model: str
    limits: StageLimits
    retries: RetryBudget
    tracer: Tracer


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """Who asks. client_salt: the cache_salt field of the client's request. record: what is remembered. span:
    of HTTP."""

    request_id: RequestId
    tenant: TenantId
    client_salt: str = ""
    record: SequenceRecord = field(default_factory=SequenceRecord)
    span: Span = NO_SPAN


class WorkerFailed(Exception):
    """A leg ended badly; another worker may do better."""

    def __init__(self, worker: WorkerInfo, error: LLMServeError) -> None:
        super().__init__(error.message)
        self.worker, self.error = worker, error
