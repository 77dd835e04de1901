"""Filters leave out the workers that may not take a request. Pure.

They work on whole lists, so that a placement among a hundred workers takes tens of microseconds.
"""

from collections.abc import Callable, Sequence, Set

from llmserve.core.clock import Clock
from llmserve.core.ids import WorkerId
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.workers.worker import ClusterMember

_PROMPTS_AT_LEAST = 2  # one that is computed, and one that follows it


class NotExcluded:
    """Leaves out workers that have failed this request before."""

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        if not request.excluded_workers:
            return members
        return [m for m in members if m.spec.worker_id not in request.excluded_workers]


class HasFreeSlot:
    """Keeps workers with fewer placed requests than their engine runs at once."""

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        return [m for m in members if m.slots.placed_requests < m.spec.max_concurrency]


class NotBackedUp:
    """Leaves out workers with prompts to compute for this many seconds. An engine serves what waits inside
    it in the order of arrival; the router serves what waits there in fair order. One prompt may always wait
    in an engine, so that it never pauses for the router."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        now = self._clock.now()
        return [
            member
            for member in members
            if member.slots.backlog.prompts < _PROMPTS_AT_LEAST
            or member.slots.backlog.seconds(now) < self._seconds
        ]


class NotSlow:
    """Leaves out slow workers while others are left. Comes after the filters for room."""

    def __init__(self, slow_names: Callable[[], Set[WorkerId]]) -> None:
        self._slow_names = slow_names

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        slow = self._slow_names()
        if not slow:
            return members
        return [member for member in members if member.spec.worker_id not in slow] or members


class HasAdapterSlot:
    """Keeps workers that can run the request's adapter beside those of the requests placed on them, and have
    not failed to get it."""

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        adapter = request.adapter
        if not adapter:
            return members
        return [
            member
            for member in members
            if adapter not in member.ruled_out and member.slots.adapters.fits(adapter, member.spec.lora.slots)
        ]
