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
        self._timer: asyncio.TimerHandle | None = None

    def put(self, item: T, within_seconds: float = 0.0) -> None:
        """within_seconds: so long the item may wait for others to travel with. It is never overtaken."""
        self._waiting.append(item)
        if not within_seconds:
            self._ready.set()
        else:
            self.hurry(within_seconds)

    def hurry(self, within_seconds: float) -> None:
        """What waits is sent within this time, or sooner if that was asked before."""
        if not self._waiting or self._ready.is_set():
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + within_seconds
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._ready.set)

    def close(self) -> None:
        """Ends `take` once it has returned what still waits. Idempotent."""
        self._closed = True
        self._ready.set()

    async def take(self) -> list[T]:
        """Waits for items and returns them in order. An empty list: the outbox is closed."""
        await self._ready.wait()
        taken, self._waiting = self._waiting, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._closed:
            self._ready.clear()
        return taken
