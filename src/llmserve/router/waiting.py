"""Calls that wait for a decision of the router."""

import asyncio
from collections.abc import Callable

from llmserve.core.errors import NotLeader


class WaitingCalls:
    """Life: until … -> close."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()
        self._closed = False

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until a decision makes this true. Errors: NotLeader when the term ends first."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while not holds():
                if self._closed:
                    raise NotLeader("this router leads no more")
                changed.clear()
                await changed.wait()
        finally:
            self._waiting.remove(changed)

    def wake(self) -> None:
        """Called after a decision that somebody may wait for."""
        for changed in self._waiting:
            changed.set()

    def close(self) -> None:
        """Ends all waiting with NotLeader, since nothing is decided any more."""
        self._closed = True
        self.wake()
