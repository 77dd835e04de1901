"""Messages of apiservers to the controller, and the effects that follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import LLMServeError
from llmserve.core.ids import AdapterDigest, BlockHash, RequestId, TenantId, WorkerId
from llmserve.core.request import Outcome
from llmserve.router.adapters.awaited import AdapterPrefetch
from llmserve.router.placement.planner import Candidate, PlacementRequest, Plan
from llmserve.router.prefix.index import NO_PROMPT, HashedPrompt, Stretch
from llmserve.router.sessions import RouterSession
from llmserve.scheduler.key_limits import NO_LIMITS, KeyLimits
from llmserve.scheduler.request import QueueReport


@dataclass(frozen=True, slots=True)
class Admit:
    """max_output_tokens: limit over all choices together. timeout_seconds: longest wait in the queue; 0:
    the router's default. limits: those of its key. again: it was admitted before, and its worker or its
    router was lost."""

    request_id: RequestId
    tenant: TenantId
    placement: PlacementRequest
    max_output_tokens: int = 0
    choices: int = 1
    priority: int = 0
    timeout_seconds: float = 0.0
    limits: KeyLimits = NO_LIMITS
    again: bool = False
    prompt: HashedPrompt = NO_PROMPT


@dataclass(frozen=True, slots=True)
class Incarnation:
    worker_id: WorkerId
    epoch: int


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """A request that an apiserver runs already. prefill None: it has no prefill worker, or is past the
    first token. output_tokens: those that the router before was told of."""

    request_id: RequestId
    tenant: TenantId
    prefill: Incarnation | None
    decode: Incarnation
    prompt_tokens: int = 0
    max_output_tokens: int = 0
    choices: int = 1
    adapter: AdapterDigest = BASE_MODEL
    model: str = ""
    limits: KeyLimits = NO_LIMITS
    output_tokens: int = 0


class Exit(StrEnum):
    """How a request left the router. REPLACED: it asked for another place. GIVEN_BACK: its session ended
    first. The others: as its apiserver reported."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    EVICTED = "evicted"
    FAILED = "failed"
    REPLACED = "replaced"
    GIVEN_BACK = "given_back"


@dataclass(frozen=True, slots=True)
class RequestPlaced:
    """predicted_cached_tokens: prompt tokens that the prefill worker is expected to have cached.
    requests_ahead: requests that waited when it arrived. prefetches: of its adapter, while it waited."""

    session: RouterSession
    request_id: RequestId
    plan: Plan
    queue_seconds: float
    predicted_cached_tokens: int
    requests_ahead: int
    report: QueueReport
    prefetches: Sequence[AdapterPrefetch] = ()


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """outcome: REJECTED before the queue, EVICTED from it."""

    session: RouterSession
    request_id: RequestId
    outcome: Outcome
    error: LLMServeError


class More(StrEnum):
    """Whether a prompt had more cached tokens than expected, or fewer."""

    EXACT = "exact"
    EXPECTED = "expected"
    FOUND = "found"


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Tokens of one prompt: all, those expected to be cached, and those that were."""

    prompt: int
    predicted: int
    actual: int

    @property
    def more(self) -> More:
        if self.predicted > self.actual:
            return More.EXPECTED
        return More.FOUND if self.predicted < self.actual else More.EXACT


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """Nothing is sent: the apiserver knows. cached: known if the engine reported its cached tokens."""

    session: RouterSession
    request_id: RequestId
    exit: Exit
    cached: CachedTokens | None = None


@dataclass(frozen=True, slots=True)
class Prefetch:
    """A request waits: blocks of these stretches of its prompt that lie below DRAM are to be loaded into
    DRAM. worker_id: a worker that could run it."""

    worker_id: WorkerId
    tenant: TenantId
    block_hashes: Sequence[BlockHash]
    stretches: Sequence[Stretch]
    wait_seconds: float
    adapter: AdapterDigest = BASE_MODEL


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """The user has the first token, this many seconds after the placement. Nothing is sent."""

    request_id: RequestId
    seconds: float
    predicted: Candidate | None


Effect = RequestPlaced | RequestRefused | RequestStarted | RequestEnded | Prefetch
