import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmserve.kvstore.tiers.nvme.commit import GroupCommit
from llmserve.kvstore.tiers.nvme.threads import run_all


class CountingFile:
    """Of a file, what a commit needs. error: what syncs end with."""

    def __init__(self) -> None:
        self.syncs = 0
        self.error: OSError | None = None
        self.begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def sync(self) -> None:
        self.syncs += 1
        self._loop.call_soon_threadsafe(self.begun.set)
        if self.error:
            raise self.error


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


async def test_those_that_come_together_share_a_sync(threads: ThreadPoolExecutor) -> None:
    file, commit = CountingFile(), GroupCommit(threads)
    await asyncio.gather(*(commit.wait(file) for _ in range(20)))  # type: ignore[arg-type]
    assert file.syncs == 1


async def test_who_comes_during_a_sync_waits_for_the_next(threads: ThreadPoolExecutor) -> None:
    file, commit = CountingFile(), GroupCommit(threads)

    async def wait() -> int:
        await commit.wait(file)  # type: ignore[arg-type]
        return file.syncs

    first = asyncio.create_task(wait())
    await file.begun.wait()
    later = [asyncio.create_task(wait()) for _ in range(5)]
    assert await first >= 1
    assert set(await asyncio.gather(*later)) == {2}


async def test_a_sync_that_fails_fails_for_all_and_only_for_them(threads: ThreadPoolExecutor) -> None:
    file, commit = CountingFile(), GroupCommit(threads)
    file.error = OSError("medium error")
    answers = await asyncio.gather(*(commit.wait(file) for _ in range(3)), return_exceptions=True)  # type: ignore[arg-type]
    assert answers == [file.error] * 3
    file.error = None
    await commit.wait(file)  # type: ignore[arg-type]


async def test_a_cancelled_batch_ends_with_its_last_job(threads: ThreadPoolExecutor) -> None:
    """Jobs that have not begun never do."""
    begun: list[int] = []
    loop, started, go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def job(number: int) -> None:
        begun.append(number)
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()

    task = asyncio.create_task(run_all(threads, [lambda n=n: job(n) for n in range(10)]))  # type: ignore[misc]
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done(), "a thread still works"
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(begun) <= 2
