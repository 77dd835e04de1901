"""What waits to be sent to one apiserver."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from llmserve.core.errors import LLMServeError
from llmserve.rpc.gen.llmserve.v1.router_pb2 import RouterSessionResponse


class Outbox:
    """Filled without waiting, emptied by one consumer. It holds at most one answer for each request
    of the session and one cluster state: only the latest matters, and it goes before answers, so
    that an apiserver knows the workers that a placement names. idle_seconds: after so long without
    either, an empty message goes out as a sign of life; None: none does."""

    def __init__(self, idle_seconds: float | None = None) -> None:
        self._idle_seconds = idle_seconds
        self._answers: deque[RouterSessionResponse] = deque()
        self._state: RouterSessionResponse | None = None
        self._closed = False
        self._error: LLMServeError | None = None
        self._news = asyncio.Event()

    def send(self, message: RouterSessionResponse) -> None:
        self._answers.append(message)
        self._news.set()

    def send_state(self, message: RouterSessionResponse) -> None:
        self._state = message
        self._news.set()

    def close(self, error: LLMServeError | None = None) -> None:
        """Ends the iteration after what is in it; with an error, by raising that."""
        if not self._closed:
            self._closed, self._error = True, error
            self._news.set()

    async def _has_news(self) -> bool:
        """False: nothing came for idle_seconds."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                return await self._news.wait()
        except TimeoutError:
            return False

    async def __aiter__(self) -> AsyncIterator[RouterSessionResponse]:
        while True:
            if self._state is not None:
                state, self._state = self._state, None
                yield state
            elif self._answers:
                yield self._answers.popleft()
            elif self._closed:
                break
            else:
                self._news.clear()
                if not await self._has_news():
                    yield RouterSessionResponse()
        if self._error is not None:
            raise self._error
