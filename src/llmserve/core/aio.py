"""Waits that a cancellation cannot cut short, and blocking jobs on threads that are awaited in this way.

Work that uses memory of its caller must end before the caller gets that memory back, also when the caller is
cancelled. So everything here keeps waiting through cancellations, and raises the CancelledError afterwards.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


async def wait_ended(
    awaitables: Sequence[Awaitable[Any]], on_cancel: Callable[[], None] | None = None
) -> None:
    """Waits until all have ended, with a result, an error or a cancellation of their own.

    A cancellation of the waiter calls `on_cancel` and is raised when all have ended; errors of the awaited
    are not logged as lost then."""
    futures = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    is_cancelled = False
    while pending := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError:
            is_cancelled = True
            if on_cancel:
                on_cancel()
    if is_cancelled:
        for future in futures:
            future.cancelled() or future.exception()  # marks the error as seen
        raise asyncio.CancelledError


async def run_in_threads(executor: Executor, jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Runs blocking jobs and returns their results in order.

    A cancelled call drops the jobs that have not begun, and ends when the others have. When jobs fail, the
    error of the first of them is raised after all have ended."""
    submitted = [executor.submit(job) for job in jobs]
    futures = [asyncio.wrap_future(future) for future in submitted]

    def drop_waiting() -> None:
        for future in submitted:
            future.cancel()

    await wait_ended(futures, drop_waiting)
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


async def run_in_thread(executor: Executor, job: Callable[[], T]) -> T:
    """Runs one blocking job as `run_in_threads` does."""
    (result,) = await run_in_threads(executor, [job])
    return result


class CallsInFlight:
    """Counts the calls that are running: each is wrapped in `with calls:`, and a close awaits `ended`."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def ended(self) -> None:
        """Waits until no call is running."""
        await self._none.wait()
