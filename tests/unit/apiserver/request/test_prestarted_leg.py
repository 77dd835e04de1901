import asyncio
from collections.abc import AsyncIterator

import pytest

from llmserve.apiserver.request.attempt import PrestartedLeg
from llmserve.core.errors import WorkerLost
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput


class FakeLeg:
    """Yields what the test puts into it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[EngineOutput | WorkerLost | None] = asyncio.Queue()

    async def outputs(self) -> AsyncIterator[EngineOutput]:
        while (event := await self.events.get()) is not None:
            if isinstance(event, WorkerLost):
                raise event
            yield event

    def say(self, *tokens: int) -> None:
        for token in tokens:
            self.events.put_nowait(EngineOutput(RequestId("r"), (token,)))


async def tokens_of(early: PrestartedLeg) -> list[int]:
    return [token async for output in early for token in output.token_ids]


async def test_outputs_wait_until_the_work_is_done() -> None:
    leg, done = FakeLeg(), asyncio.Event()
    async with PrestartedLeg(leg.outputs()) as early:
        leg.say(1, 2, 3)
        leg.events.put_nowait(None)
        after = asyncio.create_task(early.after(_wait(done)))
        await asyncio.sleep(0)
        assert not after.done()
        done.set()
        await after
        assert await tokens_of(early) == [1, 2, 3]


async def test_a_leg_that_fails_meanwhile_ends_the_work() -> None:
    leg, ended = FakeLeg(), asyncio.Event()
    async with PrestartedLeg(leg.outputs()) as early:
        leg.events.put_nowait(WorkerLost("gone"))
        with pytest.raises(WorkerLost, match="gone"):
            await early.after(_until_cancelled(ended))
        assert ended.is_set()


async def test_a_leg_that_fails_later_fails_its_reader() -> None:
    leg = FakeLeg()
    async with PrestartedLeg(leg.outputs()) as early:
        await early.after(asyncio.sleep(0))
        leg.say(1)
        leg.events.put_nowait(WorkerLost("gone"))
        with pytest.raises(WorkerLost, match="gone"):
            await tokens_of(early)


async def test_work_that_fails_is_what_is_raised() -> None:
    leg = FakeLeg()
    with pytest.raises(WorkerLost, match="prefill"):
        async with PrestartedLeg(leg.outputs()) as early:
            await early.after(_fail())


async def test_a_leg_that_nobody_reads_is_let_go() -> None:
    leg = FakeLeg()
    async with PrestartedLeg(leg.outputs()) as early:
        await early.after(asyncio.sleep(0))
    leg.say(1)
    assert len(asyncio.all_tasks()) == 1


async def test_cancelled_it_ends_the_work() -> None:
    leg, ended = FakeLeg(), asyncio.Event()
    async with PrestartedLeg(leg.outputs()) as early:
        after = asyncio.create_task(early.after(_until_cancelled(ended)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        after.cancel()
        with pytest.raises(asyncio.CancelledError):
            await after
        assert ended.is_set()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _until_cancelled(ended: asyncio.Event) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()


async def _fail() -> None:
    raise WorkerLost("prefill")
