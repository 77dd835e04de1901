import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmserve.core.aio import CallsInFlight, run_in_thread, run_in_threads, wait_ended


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


async def cancel_and_turn(task: asyncio.Task[object], turns: int = 3) -> None:
    task.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)


# -- wait_ended


async def test_nothing_is_awaited_at_once() -> None:
    await wait_ended([])


async def test_it_waits_for_all_whatever_they_end_with() -> None:
    loop = asyncio.get_running_loop()
    done, failed, cancelled = (loop.create_future() for _ in range(3))
    task = asyncio.create_task(wait_ended([done, failed, cancelled]))
    done.set_result(1)
    failed.set_exception(OSError("broken"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    cancelled.cancel()
    await task
    assert str(failed.exception()) == "broken"


async def test_a_cancellation_is_raised_only_when_all_have_ended() -> None:
    future = asyncio.get_running_loop().create_future()
    told: list[int] = []
    task = asyncio.create_task(wait_ended([future], lambda: told.append(1)))
    await asyncio.sleep(0)
    await cancel_and_turn(task)
    await cancel_and_turn(task)
    assert not task.done()
    assert told == [1, 1]
    future.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_without_on_cancel_it_waits_as_well() -> None:
    future = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(wait_ended([future]))
    await asyncio.sleep(0)
    await cancel_and_turn(task)
    assert not task.done()
    future.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_is_not_lost_in_the_log_after_a_cancellation() -> None:
    loop = asyncio.get_running_loop()
    logged: list[object] = []
    loop.set_exception_handler(lambda _, context: logged.append(context))
    future, other = loop.create_future(), loop.create_future()
    task = asyncio.create_task(wait_ended([future, other]))
    await asyncio.sleep(0)
    await cancel_and_turn(task)
    other.cancel()
    future.set_exception(OSError("broken"))
    with pytest.raises(asyncio.CancelledError):
        await task
    del future, task
    assert logged == []


# -- threads


async def test_results_come_in_the_order_of_the_jobs(threads: ThreadPoolExecutor) -> None:
    second_may_end = threading.Event()

    def first() -> int:
        second_may_end.wait(30)
        return 1

    def second() -> int:
        second_may_end.set()
        return 2

    assert await run_in_threads(threads, [first, second]) == [1, 2]
    assert await run_in_threads(threads, list[type[int]]()) == []


async def test_an_error_is_raised_when_all_jobs_have_ended(threads: ThreadPoolExecutor) -> None:
    ended: list[int] = []

    def job(number: int) -> None:
        if number < 2:
            raise OSError(f"broken {number}")
        ended.append(number)

    with pytest.raises(OSError, match="broken 0"):
        await run_in_threads(threads, [lambda n=n: job(n) for n in range(4)])  # type: ignore[misc]
    assert ended == [2, 3]


async def test_one_job_has_its_result_or_its_error(threads: ThreadPoolExecutor) -> None:
    assert await run_in_thread(threads, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(threads, lambda: 1 // 0)


async def test_a_cancelled_batch_ends_with_its_last_job(threads: ThreadPoolExecutor) -> None:
    """Jobs that have not begun never do."""
    begun: list[int] = []
    loop, started, go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def job(number: int) -> None:
        begun.append(number)
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()

    task = asyncio.create_task(run_in_threads(threads, [lambda n=n: job(n) for n in range(10)]))  # type: ignore[misc]
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done(), "a thread still works"
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(begun) <= 2


# -- calls


async def test_a_close_waits_for_the_last_call() -> None:
    calls = CallsInFlight()
    await calls.ended()
    with calls, calls:
        closing = asyncio.create_task(calls.ended())
        await asyncio.sleep(0)
        assert not closing.done()
    await closing


async def test_one_of_two_calls_is_not_all_of_them() -> None:
    calls = CallsInFlight()
    with calls:
        with calls:
            pass
        closing = asyncio.create_task(calls.ended())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not closing.done()
    await closing


async def test_a_call_that_fails_has_ended() -> None:
    calls = CallsInFlight()
    with pytest.raises(OSError, match="broken"), calls:
        raise OSError("broken")
    await calls.ended()
