"""Pulls, or pushes, from their start on the engine's thread to the result that the engine takes."""

import threading
from collections import deque
from contextlib import suppress

from llmserve.core.ids import RequestId
from llmserve.engines.kv_transfer.pull import PullResult


class Results:
    """Any thread may call. ended: set whenever there is a result to be taken."""

    def __init__(self, ended: threading.Event) -> None:
        self._ended = ended
        self._lock = threading.Lock()
        self._active: set[RequestId] = set()
        self._finished: deque[PullResult] = deque()

    @property
    def active_count(self) -> int:
        """Those that were begun and have no result yet."""
        return len(self._active)

    def begin(self, request_id: RequestId) -> bool:
        """False: it was begun before, and has no result yet."""
        with self._lock:
            is_new = request_id not in self._active
            self._active.add(request_id)
        return is_new

    def drop(self, request_id: RequestId) -> None:
        """It could not be started: no result follows."""
        with self._lock:
            self._active.discard(request_id)

    def conclude(self, result: PullResult) -> None:
        self.drop(result.request_id)
        self._finished.append(result)
        self._ended.set()

    def take(self) -> list[PullResult]:
        """Each result once."""
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self._finished.popleft())
        return taken
