"""What the admission queue answers, and what it counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from llmserve.core.errors import LLMServeError
from llmserve.scheduler.request import QueuedRequest


class Fit(Enum):
    """What the caller of dispatch answers for one request."""

    PLACED = "placed"  # it has its place; it is running from now on
    BLOCKED = "blocked"  # no place for this one now; others may have one
    FULL = "full"  # no place for any


Place = Callable[[QueuedRequest], Fit]  # finds a place for a request, and takes it


@dataclass(frozen=True, slots=True)
class Dispatched:
    """It never waited."""


@dataclass(frozen=True, slots=True)
class Evicted:
    request: QueuedRequest
    error: LLMServeError


@dataclass(frozen=True, slots=True)
class Queued:
    """evicted: another made room for it, of a tenant that had more of the queue than its share."""

    ahead: int  # requests that waited before it came, over all tenants
    evicted: Evicted | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a request stood when its turn came. used_up_seconds: what was while it waited, and for how long.
    share: of its tenant, of the turns of all tenants that waited; 1: it was alone."""

    used_up_seconds: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Rejected:
    """error: QueueFull, or InvalidRequest for one that could never run."""

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
