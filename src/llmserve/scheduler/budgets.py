"""What dispatched requests hold, and how much of it there is."""

from typing import Protocol

from llmserve.core.ids import RequestId
from llmserve.scheduler.request import QueuedRequest


class Budget(Protocol):
    """A request is dispatched when every budget fits. Each reserve is matched by one release,
    whatever way the request ends; correct may come any number of times between them."""

    name: str  # what a refusal gives as its reason

    def fits(self, request: QueuedRequest) -> bool: ...

    def reserve(self, request: QueuedRequest) -> None:
        """Counts the request, also past the limit: one that runs already is adopted so."""

    def correct(self, request_id: RequestId, output_tokens: int) -> None:
        """The request has generated this many tokens so far."""

    def release(self, request_id: RequestId) -> None: ...


class RequestBudget:
    """The number of requests in flight, over the whole cluster."""

    name = "requests in flight"

    def __init__(self, limit_requests: int) -> None:
        self.limit_requests = limit_requests
        self._held: set[RequestId] = set()

    def __repr__(self) -> str:
        return f"<RequestBudget {len(self._held)} of {self.limit_requests}>"

    @property
    def in_flight(self) -> int:
        return len(self._held)

    def set_limit(self, limit_requests: int) -> None:
        """A smaller limit takes nothing back: dispatch waits until enough have ended."""
        self.limit_requests = limit_requests

    def fits(self, request: QueuedRequest) -> bool:
        return len(self._held) < self.limit_requests

    def reserve(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._held, "reserved twice"
        self._held.add(request.request_id)

    def correct(self, request_id: RequestId, output_tokens: int) -> None:
        """Tokens do not change the number of requests."""

    def release(self, request_id: RequestId) -> None:
        self._held.remove(request_id)
