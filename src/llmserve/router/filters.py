"""Which of the available workers may take a request. Filters work on whole lists: that is what
keeps a placement among a hundred workers within tens of microseconds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmserve.core.ids import WorkerId
from llmserve.router.prefix_match import PrefixMatch
from llmserve.router.worker import Member


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
