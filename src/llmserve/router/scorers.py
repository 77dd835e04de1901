"""How well a worker suits a request: 1 is best, 0 is worst. A plan adds up weighted scores."""

from collections.abc import Sequence
from typing import Protocol

from llmserve.router.filters import PlacementRequest
from llmserve.router.worker import Member


class Scorer(Protocol):
    def scores(self, members: Sequence[Member], request: PlacementRequest) -> list[float]:
        """One for each member, in the same order."""


class FreeSeats:
    """The share of the worker's seats that are free: known at once and exactly."""

    def scores(self, members: Sequence[Member], request: PlacementRequest) -> list[float]:
        return [1.0 - m.seats.placed_requests / m.spec.max_concurrency for m in members]


class ShortEngineQueue:
    """How little waits inside the engine, as its last heartbeat said."""

    def scores(self, members: Sequence[Member], request: PlacementRequest) -> list[float]:
        return [m.spec.max_concurrency / (m.spec.max_concurrency + m.load.waiting_requests) for m in members]
