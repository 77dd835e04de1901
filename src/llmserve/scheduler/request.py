"""A request in the queue, and what the queue answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import LLMServeError
from llmserve.core.ids import AdapterDigest, RequestId, TenantId


@dataclass(slots=True)
class QueuedRequest:
    """Times are on the queue's clock, in seconds. deadline: the request is evicted if it still waits then.
    choices: sequences that decode side by side; output tokens count over all of them. max_output_tokens:
    most that it may generate; 0: unknown. cached_tokens: prompt tokens that need not be computed. priority:
    as in vLLM, lower is earlier. charged: an earlier router has charged its tenant, and the snapshot says
    so. adapter: the version that it runs on. model: its name for clients. expected_output_tokens: the queue
    sets it, from what the tenant's requests generated."""

    request_id: RequestId
    tenant: TenantId
    arrived_at: float
    deadline: float
    prompt_tokens: int = 0
    max_output_tokens: int = 0
    priority: int = 0
    cached_tokens: int = 0
    charged: bool = False
    choices: int = 1
    adapter: AdapterDigest = BASE_MODEL
    model: str = ""
    expected_output_tokens: int = field(default=0, compare=False)

    def work_tokens(self, output_tokens: int) -> int:
        """Tokens to compute when it generates this many; at least 1."""
        return max(1, self.prompt_tokens - self.cached_tokens + output_tokens)

    def context_tokens(self, output_tokens: int) -> int:
        """Tokens whose KV it holds when it has generated this many."""
        return self.prompt_tokens + output_tokens


class WaitingRequest(NamedTuple):
    """A request in a flow: smallest key first, then in the order of arrival."""

    key: float
    sequence: int
    request: QueuedRequest


class Fit(Enum):
    """What the caller of dispatch answers for one request."""

    PLACED = "placed"  # it has its place; it is running from now on
    BLOCKED = "blocked"  # no place for this one now; others may have one
    NO_SLOT = "no slot"  # likewise, for want of an adapter slot
    DEFERRED = "deferred"  # it may have one: to be asked again when later ones of its tenant were asked
    FULL = "full"  # no place for any of its model


Place = Callable[[QueuedRequest], Fit]  # finds a place for a request, and takes it


def has_place(request: QueuedRequest) -> Fit:
    """A Place that takes nothing, of a caller that has room for all."""
    return Fit.PLACED


@dataclass(frozen=True, slots=True)
class Dispatched:
    """The request never waited."""


@dataclass(frozen=True, slots=True)
class EvictedRequest:
    request: QueuedRequest
    error: LLMServeError


@dataclass(frozen=True, slots=True)
class Queued:
    """ahead: requests of all tenants that waited before it. evicted: a request that made room for it, of a
    tenant with more of the queue than its share."""

    ahead: int  # requests that waited before it came, over all tenants
    evicted: EvictedRequest | None = None


@dataclass(frozen=True, slots=True)
class QueueReport:
    """How a request stood when its turn came. used_up_seconds: for how long each budget was used up while
    it waited. share: its tenant's share of the turns of all waiting tenants; 1: it was alone."""

    used_up_seconds: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Rejected:
    """error: QueueFull, or InvalidRequest for a request that could never run."""

    error: LLMServeError


@dataclass(slots=True)
class Tally:
    """Totals since start. waiting = offered - rejected - withdrawn - evicted - dispatched;
    running = dispatched + adopted - released."""

    offered: int = 0
    rejected: int = 0
    withdrawn: int = 0
    evicted: int = 0
    dispatched: int = 0
    adopted: int = 0
    released: int = 0
