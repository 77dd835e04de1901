"""When requests that wait are evicted."""

import heapq

from llmserve.core.ids import RequestId

# Entries of requests that have left stay in the heap until they are most of it.
_SLACK = 64


class Deadlines:
    """One deadline for each request; the earliest first."""

    def __init__(self) -> None:
        self._of: dict[RequestId, float] = {}
        self._heap: list[tuple[float, RequestId]] = []

    def put(self, request_id: RequestId, deadline: float) -> None:
        """Adds a request or moves its deadline."""
        self._of[request_id] = deadline
        heapq.heappush(self._heap, (deadline, request_id))

    def remove(self, request_id: RequestId) -> None:
        del self._of[request_id]
        if len(self._heap) > 2 * len(self._of) + _SLACK:
            self._heap = [(deadline, request_id) for request_id, deadline in self._of.items()]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """The earliest one; None when there is none."""
        entry = self._first()
        return entry[0] if entry else None

    def due(self, now: float) -> RequestId | None:
        """The request whose deadline is the earliest, if that has come. It is not removed."""
        entry = self._first()
        return entry[1] if entry and entry[0] <= now else None

    def check_integrity(self, waiting: set[RequestId]) -> None:
        assert self._of.keys() == waiting
        assert {(deadline, request_id) for request_id, deadline in self._of.items()} <= set(self._heap)

    def _first(self) -> tuple[float, RequestId] | None:
        while self._heap:
            deadline, request_id = self._heap[0]
            if self._of.get(request_id) == deadline:
                return self._heap[0]
            heapq.heappop(self._heap)
        return None
