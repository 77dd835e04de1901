"""The turn of `/v1/generate_nobatch`, the baseline of batching: its requests run one after another."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from llmserve.apiserver.http.scope import current_scope
from llmserve.core.errors import DeadlineExceeded, QueueFull

_MOST_WAITING = 64


class BaselineTurn:
    """Lets the requests of `/v1/generate_nobatch` run one after another. limit_seconds: what a request may
    take, its wait included."""

    def __init__(self, limit_seconds: Callable[[], float]) -> None:
        self._limit_seconds, self._turn, self._waiting = limit_seconds, asyncio.Lock(), 0

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Waits until no other request has the turn. Errors: QueueFull, DeadlineExceeded."""
        if self._waiting >= _MOST_WAITING:
            raise QueueFull(f"{self._waiting} requests wait for this route, which runs one at a time")
        began, limit = time.monotonic(), self._limit_seconds()
        self._waiting += 1
        try:
            async with asyncio.timeout(limit):
                await self._turn.acquire()
        except TimeoutError:
            raise DeadlineExceeded(f"the request had no turn within {limit:g} s") from None
        finally:
            self._waiting -= 1
        try:
            current_scope().waited_seconds += time.monotonic() - began
            yield
        finally:
            self._turn.release()
