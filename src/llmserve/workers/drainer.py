"""A worker that is to leave on an operator's order: it ends what runs, then stops."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from llmserve.core.tasks import TaskOwner

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
# What was placed here just before the order is still on its way.
_QUIET_SECONDS = 0.5


class Drainer:
    """is_busy: something runs here, or waits to be fetched. `done`: nothing does any more, or the time is
    over; the worker is to stop."""

    def __init__(self, is_busy: Callable[[], Awaitable[bool]], tasks: TaskOwner) -> None:
        self._is_busy = is_busy
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self.done = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._task is not None

    def order(self, drain: bool, timeout_seconds: float) -> None:
        """Idempotent: a second order to drain does not begin anew. One to stay comes too late once it is
        `done`."""
        if drain and self._task is None:
            _log.info("draining, for at most %g s", timeout_seconds)
            self._task = self._tasks.spawn("drain", self._drain(timeout_seconds))
        elif not drain and self._task is not None and not self.done.is_set():
            _log.info("no longer draining")
            self._task.cancel()
            self._task = None

    async def _drain(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._until_quiet()
        except TimeoutError:
            _log.warning("drained for %g s: what still runs goes on elsewhere", timeout_seconds)
        self.done.set()

    async def _until_quiet(self) -> None:
        quiet_since = asyncio.get_running_loop().time()
        while (now := asyncio.get_running_loop().time()) - quiet_since < _QUIET_SECONDS:
            if await self._is_busy():
                quiet_since = now
            await asyncio.sleep(_POLL_SECONDS)
