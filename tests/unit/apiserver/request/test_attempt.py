"""A leg that waits for another one, as decode does for a prefill that pushes."""

import asyncio
from collections.abc import Iterator

import pytest
import pytest_asyncio

from llmserve.apiserver.links.worker import LegStream
from llmserve.apiserver.request.attempt import unless_it_fails
from llmserve.core.errors import WorkerLost
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput

OUTPUT = EngineOutput(RequestId("r"), (1,))


class Work:
    """Work that ends when the test says so. ended: however it did."""

    def __init__(self) -> None:
        self.may_end, self.ended = asyncio.Event(), False

    async def do(self) -> None:
        try:
            await self.may_end.wait()
        finally:
            self.ended = True


@pytest_asyncio.fixture
async def leg() -> LegStream:
    return LegStream(RequestId("r"), "decode-0", 5, 5, lambda leg, running: None)


@pytest.fixture(autouse=True)
def closed(leg: LegStream) -> Iterator[None]:
    yield
    leg.close()


async def test_a_leg_that_begins_early_waits_for_the_work(leg: LegStream) -> None:
    work = Work()
    waiting = asyncio.create_task(unless_it_fails(leg, work.do()))
    leg.deliver(OUTPUT)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    work.may_end.set()
    await waiting
    assert [output.token_ids for output in leg.untaken()] == [(1,)]


async def test_a_leg_that_fails_meanwhile_ends_the_work(leg: LegStream) -> None:
    work = Work()
    waiting = asyncio.create_task(unless_it_fails(leg, work.do()))
    await asyncio.sleep(0)
    leg.deliver(WorkerLost("gone"))
    with pytest.raises(WorkerLost, match="gone"):
        await waiting
    assert work.ended


async def test_a_leg_may_begin_after_the_work(leg: LegStream) -> None:
    await unless_it_fails(leg, asyncio.sleep(0))
    assert len(asyncio.all_tasks()) == 1


async def test_work_that_fails_is_what_is_raised(leg: LegStream) -> None:
    async def fail() -> None:
        raise WorkerLost("prefill")

    with pytest.raises(WorkerLost, match="prefill"):
        await unless_it_fails(leg, fail())


async def test_cancelled_it_ends_the_work(leg: LegStream) -> None:
    work = Work()
    waiting = asyncio.create_task(unless_it_fails(leg, work.do()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.ended
