"""Who is next within a flow."""

from dataclasses import dataclass
from typing import Protocol

from llmserve.scheduler.request import QueuedRequest

# A priority beyond this counts as this, so that the bound holds whatever clients send.
_MOST_PRIORITY = 10


class Ordering(Protocol):
    def key(self, request: QueuedRequest) -> float:
        """Smallest first; equal keys are served in the order of arrival. Asked once, on arrival."""


@dataclass(frozen=True, slots=True)
class ShortestFirst:
    """Shortest expected work first, with aging: each request queues as if it had come later by the
    seconds its work is worth, and by those of its priority. A fixed key is enough, because waiting
    favours all that wait alike.

    Bound: a request is overtaken by none that comes overtaken_within_seconds after it, or later.
    One whose deadline is sooner than that place in the order queues by its deadline.

    seconds_per_1000_tokens: what expected work is worth; aging_seconds: at most. 0: order of arrival.
    priority_seconds: what one step of priority is worth.
    """

    seconds_per_1000_tokens: float = 5.0
    aging_seconds: float = 20.0
    priority_seconds: float = 5.0

    @property
    def overtaken_within_seconds(self) -> float:
        return self.aging_seconds + 2 * _MOST_PRIORITY * self.priority_seconds

    def key(self, request: QueuedRequest) -> float:
        work = request.work_tokens(request.expected_output_tokens)
        size = min(self.seconds_per_1000_tokens * work / 1000, self.aging_seconds)
        priority = max(-_MOST_PRIORITY, min(request.priority, _MOST_PRIORITY)) * self.priority_seconds
        return min(request.arrived_at + size + priority, request.deadline)
