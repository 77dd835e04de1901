"""What apiservers say to the controller, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from llmserve.core.errors import LLMServeError
from llmserve.core.ids import BlockHash, RequestId, TenantId, WorkerId
from llmserve.core.outcome import Outcome
from llmserve.router.placement.planner import Candidate, PlacementRequest, Plan
from llmserve.router.prefix.index import HashedPrompt, Stretch
from llmserve.router.sessions import ApiserverSession
from llmserve.scheduler.request import QueueReport


@dataclass(frozen=True, slots=True)
class Admit:
    """max_output_tokens: of all its choices together. timeout_seconds: longest wait in the queue; 0: the
    router's default."""

    request_id: RequestId
    tenant: TenantId
    placement: PlacementRequest
    max_output_tokens: int = 0
    choices: int = 1
    priority: int = 0
    timeout_seconds: float = 0.0
    prompt: HashedPrompt = field(default_factory=HashedPrompt)


@dataclass(frozen=True, slots=True)
class Incarnation:
    worker_id: WorkerId
    epoch: int


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """A request that an apiserver runs already. prefill None: none, or it is past the first token."""

    request_id: RequestId
    tenant: TenantId
    prefill: Incarnation | None
    decode: Incarnation
    prompt_tokens: int = 0
    max_output_tokens: int = 0
    choices: int = 1


class Exit(StrEnum):
    """How a request left the router: as its apiserver said, or REPLACED when it asked for another
    place, or GIVEN_BACK when the session ended first."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    EVICTED = "evicted"
    FAILED = "failed"
    REPLACED = "replaced"
    GIVEN_BACK = "given_back"


@dataclass(frozen=True, slots=True)
class RequestPlaced:
    """predicted_cached_tokens: of the prompt, what the worker that runs its prefill need not compute.
    requests_ahead: that waited when it came."""

    session: ApiserverSession
    request_id: RequestId
    plan: Plan
    queue_seconds: float
    predicted_cached_tokens: int = 0
    requests_ahead: int = 0
    report: QueueReport = field(default_factory=QueueReport)


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """outcome: REJECTED before the queue, EVICTED after it."""

    session: ApiserverSession
    request_id: RequestId
    outcome: Outcome
    error: LLMServeError


class More(StrEnum):
    """Of cached tokens: which were more, those expected or those found."""

    EXACT = "exact"
    EXPECTED = "expected"
    FOUND = "found"


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Of a prompt that was run: tokens that were expected not to be computed, and that were not."""

    prompt: int
    predicted: int
    actual: int

    @property
    def more(self) -> More:
        if self.predicted == self.actual:
            return More.EXACT
        return More.EXPECTED if self.predicted > self.actual else More.FOUND


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """Nothing to send: the apiserver knows. cached: where it told."""

    session: ApiserverSession
    request_id: RequestId
    exit: Exit
    cached: CachedTokens | None = None


@dataclass(frozen=True, slots=True)
class Prefetch:
    """A request waits: what of these stretches of its prompt lies below DRAM is to come up. worker_id: one
    that could run it."""

    worker_id: WorkerId
    tenant: TenantId
    block_hashes: Sequence[BlockHash]
    stretches: Sequence[Stretch]
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """Its user has the first token, so many seconds after its placement. Nothing to send."""

    request_id: RequestId
    seconds: float
    predicted: Candidate | None


Effect = RequestPlaced | RequestRefused | RequestStarted | RequestEnded | Prefetch
