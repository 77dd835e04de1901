"""Exponential backoff with full jitter between the halves, so that peers do not return in step."""

import asyncio
import random


class Backoff:
    """next() gives the seconds to wait before try 1, 2, ...; reset() after a success."""

    def __init__(
        self,
        initial_seconds: float = 0.1,
        max_seconds: float = 2.0,
        factor: float = 2.0,
        rng: random.Random | None = None,
    ) -> None:
        self._initial, self._max, self._factor = initial_seconds, max_seconds, factor
        self._rng = rng or random.Random()
        self._current = initial_seconds

    def next(self) -> float:
        wait = self._current * (0.5 + 0.5 * self._rng.random())
        self._current = min(self._max, self._current * self._factor)
        return wait

    async def pause(self) -> None:
        """Waits before the next try. Ends a task that was cancelled, also when the try has answered that with
        an error of its own: a call of gRPC that fails at the same moment does so."""
        self.check()
        await asyncio.sleep(self.next())

    def check(self) -> None:
        """Does what `pause` does, without waiting. Errors: CancelledError."""
        task = asyncio.current_task()
        if task and task.cancelling():
            raise asyncio.CancelledError

    def reset(self) -> None:
        self._current = self._initial
