"""What one end of a stream has to send."""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """Filled without waiting, and emptied by one consumer, which takes all that waits: what is put in one
    turn of the event loop, or while the stream is busy, travels together."""

    def __init__(self) -> None:
        self._waiting: list[T] = []
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, item: T) -> None:
        self._waiting.append(item)
        self._ready.set()

    def close(self) -> None:
        """Ends `take` once it has returned what still waits. Idempotent."""
        self._closed = True
        self._ready.set()

    async def take(self) -> list[T]:
        """Waits for items and returns them in order. An empty list: the outbox is closed."""
        while not self._waiting and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        taken, self._waiting = self._waiting, []
        return taken
