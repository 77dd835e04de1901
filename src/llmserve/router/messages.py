"""What apiservers say to the controller, and what follows from it."""

from dataclasses import dataclass, field
from enum import StrEnum

from llmserve.core.errors import LLMServeError
from llmserve.core.ids import RequestId, TenantId, WorkerId
from llmserve.core.outcome import Outcome
from llmserve.router.filters import PlacementRequest
from llmserve.router.plan import Plan
from llmserve.router.session import Session
from llmserve.scheduler.decisions import Standing


@dataclass(frozen=True, slots=True)
class Admit:
    """timeout_seconds: longest wait in the queue; 0: the router's default."""

    request_id: RequestId
    tenant: TenantId
    placement: PlacementRequest
    max_output_tokens: int = 0
    priority: int = 0
    timeout_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Incarnation:
    worker_id: WorkerId
    epoch: int


@dataclass(frozen=True, slots=True)
class Held:
    """A request that an apiserver runs already. prefill None: none, or it is past the first token."""

    request_id: RequestId
    tenant: TenantId
    prefill: Incarnation | None
    decode: Incarnation
    prompt_tokens: int = 0
    max_output_tokens: int = 0


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
class Placed:
    """requests_ahead: that waited when it came."""

    session: Session
    request_id: RequestId
    plan: Plan
    queue_seconds: float
    requests_ahead: int = 0
    standing: Standing = field(default_factory=Standing)


@dataclass(frozen=True, slots=True)
class Refused:
    """outcome: REJECTED before the queue, EVICTED after it."""

    session: Session
    request_id: RequestId
    outcome: Outcome
    error: LLMServeError


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing to send: the apiserver knows."""

    request_id: RequestId
    exit: Exit


Effect = Placed | Refused | Ended
