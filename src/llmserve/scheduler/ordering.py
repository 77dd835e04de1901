"""Who is next within a flow."""

from typing import Protocol

from llmserve.scheduler.request import QueuedRequest


class Ordering(Protocol):
    def key(self, request: QueuedRequest) -> float:
        """Smallest first; equal keys are served in the order of arrival. Asked once, on arrival.

        A fixed key is enough for shortest-remaining-work with aging: that request has precedence
        whose work - aging * (now - arrived_at) is least, and `now` is the same for all of them.
        """


class FifoOrdering:
    """In the order of arrival."""

    def key(self, request: QueuedRequest) -> float:
        return request.arrived_at
