"""What the run of a request is given: who asks, whom it asks, and where its tokens go."""

from dataclasses import dataclass, field
from typing import Protocol

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.handover_mode import HandoverRule
from llmserve.apiserver.identity import KvIdentity
from llmserve.apiserver.retry_budget import RetryBudget
from llmserve.apiserver.router_link import RouterLink
from llmserve.apiserver.stages import StageLimits
from llmserve.apiserver.worker_links import WorkerLinks
from llmserve.core.errors import LLMServeError
from llmserve.core.ids import RequestId, TenantId
from llmserve.core.request import EngineOutput
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.tracing.base import NO_SPAN, Span, Tracer


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
class RequestCard:
    """Who asks. client_salt: the cache_salt field of the client's request. record: what is remembered. span:
    of HTTP."""

    request_id: RequestId
    tenant: TenantId
    client_salt: str = ""
    record: SequenceRecord = field(default_factory=SequenceRecord)
    span: Span = NO_SPAN
