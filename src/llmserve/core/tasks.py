"""Owned background tasks: each has a name and an owner, and none fails unseen."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

_log = logging.getLogger(__name__)


async def first_done(name: str, *works: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Runs all until the first is done, and cancels the others. Returns their tasks, which are all done."""
    tasks = [asyncio.create_task(work, name=f"{name}.{index}") for index, work in enumerate(works)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return tasks


@asynccontextmanager
async def running_beside(name: str, work: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """Runs work that has no end of its own while the block runs. Errors: those of the work."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class TaskOwner:
    """Holds tasks until they end or the owner closes. A task that fails is logged; with
    `fatal=True` it also completes `failed`, which the owner's main loop awaits."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, name: str, work: Coroutine[Any, Any, Any], *, fatal: bool = False) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}.{name}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, fatal))
        return task

    def _ended(self, task: asyncio.Task[Any], fatal: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("task failed: %s", task.get_name(), exc_info=error)
        if fatal and not self.failed.done():
            self.failed.set_result(error)

    async def aclose(self) -> None:
        """Cancels the tasks that run and waits for them. Idempotent."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self.failed.done():
            self.failed.cancel()
