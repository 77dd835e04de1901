"""What a rejected client receives: why, and when to come back."""

from llmserve.core.clock import Clock
from llmserve.core.errors import QueueFull, QueueTimeout
from llmserve.scheduler.fairness import FairShare
from llmserve.scheduler.flows import Flows
from llmserve.scheduler.rate import ServiceRate
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.resources import BudgetSet

# A client that comes back sooner costs more than it gains.
_SHORTEST_RETRY_SECONDS = 0.1
_UNKNOWN = float("inf")


class Refusals:
    """longest_retry_seconds: upper limit of Retry-After. It is the usual queue timeout: by then everything
    that waits now is served or evicted. rate: the queue reports each departure to it."""

    def __init__(
        self,
        clock: Clock,
        flows: Flows,
        budgets: BudgetSet,
        fairness: FairShare,
        rate: ServiceRate,
        longest_retry_seconds: float,
    ) -> None:
        self.longest_retry_seconds = longest_retry_seconds
        self._clock, self._flows, self._budgets = clock, flows, budgets
        self._fairness, self._rate = fairness, rate

    def retry_after_seconds(self, request: QueuedRequest) -> float:
        """Expected time until a request like this has a turn: from the recent rate of service, its tenant's
        share, and the rate at which the budgets it needs are given back."""
        own, weight = self._flows.of_tenant(request.tenant), self._fairness.shares.weight
        share = weight(request.tenant) / self._flows.weight_with(request.tenant, weight)
        turns = min(len(self._flows) + 1, (own + 1) / share)
        turn = self._rate.wait_seconds(turns, self._clock.now(), _UNKNOWN)
        room = self._budgets.wait_seconds(request, own)
        wait = room if turn == _UNKNOWN and room else max(turn, room)
        return max(_SHORTEST_RETRY_SECONDS, min(wait, self.longest_retry_seconds))

    def full(self, request: QueuedRequest) -> QueueFull:
        message = f"the queue is full: {len(self._flows)} requests wait{self._reason(request)}"
        return QueueFull(message, retry_after_seconds=self.retry_after_seconds(request))

    def timeout(self, request: QueuedRequest) -> QueueTimeout:
        waited = self._clock.now() - request.arrived_at
        message = f"waited {waited:.1f} s for a place{self._reason(request)}"
        return QueueTimeout(message, retry_after_seconds=self.retry_after_seconds(request))

    def _reason(self, request: QueuedRequest) -> str:
        used_up = self._budgets.used_up(request)
        return f" (used up: {', '.join(used_up)})" if used_up else ""
