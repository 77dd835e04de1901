"""Blocking jobs on threads, awaited so that none is left when the caller goes on."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


async def all_ended(futures: Sequence[Awaitable[Any]], give_up: Callable[[], None] = lambda: None) -> None:
    """Waits for all, whatever they end with. A cancellation calls `give_up`, and is passed on when all have
    ended."""
    cancelled = False
    waiting = {asyncio.ensure_future(future) for future in futures}
    while waiting:
        try:
            _, waiting = await asyncio.wait(waiting)
        except asyncio.CancelledError:
            cancelled = True
            give_up()
            waiting = {future for future in waiting if not future.done()}
    if cancelled:
        raise asyncio.CancelledError


async def run_all(executor: Executor, jobs: Sequence[Callable[[], T]]) -> list[T]:
    """The answers of jobs, which must not raise. Cancelled: those that have not begun never do."""
    submitted = [executor.submit(job) for job in jobs]
    futures = [asyncio.wrap_future(future) for future in submitted]

    def give_up() -> None:
        for future in submitted:
            future.cancel()

    await all_ended(futures, give_up)
    return [future.result() for future in futures]


async def run_one(executor: Executor, job: Callable[[], T]) -> T:
    """Errors: those of the job."""
    future = asyncio.wrap_future(executor.submit(job))
    await all_ended([future])
    return future.result()
