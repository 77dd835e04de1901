"""Which of the available workers may take a request. Filters work on whole lists: that is what
keeps a placement among a hundred workers within tens of microseconds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmserve.core.clock import Clock
from llmserve.core.ids import WorkerId
from llmserve.router.backlog import Backlog
from llmserve.router.prefix_match import PrefixMatch
from llmserve.router.worker import Member

_PROMPTS_AT_LEAST = 2  # one that is computed, and one that follows it


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What placement knows of a request."""

    model: str
    prompt_tokens: int = 0
    excluded_workers: frozenset[WorkerId] = frozenset()
    match: PrefixMatch = field(default_factory=PrefixMatch)


class Filter(Protocol):
    reason: str  # why a worker is not kept, for people

    def keep(self, members: Sequence[Member], request: PlacementRequest) -> Sequence[Member]:
        """Those that may take it, in the same order."""


class NotExcluded:
    """Without those that have failed this request before."""

    reason = "it has failed this request before"

    def keep(self, members: Sequence[Member], request: PlacementRequest) -> Sequence[Member]:
        if not request.excluded_workers:
            return members
        return [m for m in members if m.spec.worker_id not in request.excluded_workers]


class HasFreeSeat:
    """With fewer requests placed than the engine runs at once."""

    reason = "no free seat"

    def keep(self, members: Sequence[Member], request: PlacementRequest) -> Sequence[Member]:
        return [m for m in members if m.seats.placed_requests < m.spec.max_concurrency]


class NotBackedUp:
    """With less than so many seconds of prompts to compute. What waits inside an engine is served as it
    came; what waits at the router, in fair order. One prompt may always wait there: an engine never
    pauses for the router."""

    reason = "prompts enough to compute"

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def keep(self, members: Sequence[Member], request: PlacementRequest) -> Sequence[Member]:
        now = self._clock.now()
        return [m for m in members if self._has_room(m.seats.backlog, now)]

    def _has_room(self, backlog: Backlog, now: float) -> bool:
        return len(backlog) < _PROMPTS_AT_LEAST or backlog.seconds(now) < self._seconds
