"""Deadlines of a leg: of its first output, and of each later one."""

import asyncio

import pytest

from llmserve.apiserver.links.worker import LegStream
from llmserve.core.errors import WorkerStalled
from llmserve.core.ids import RequestId
from llmserve.core.outcome import FinishReason
from llmserve.core.request import EngineOutput

R = RequestId("r")


def leg(first_seconds: float, next_seconds: float) -> LegStream:
    return LegStream(R, "decode-0", first_seconds, next_seconds, lambda leg, running: None)


async def taken(stream: LegStream, *pauses_seconds: float) -> list[int]:
    async def deliver() -> None:
        for index, seconds in enumerate(pauses_seconds):
            await asyncio.sleep(seconds)
            is_last = index == len(pauses_seconds) - 1
            stream.deliver(EngineOutput(R, (index,), FinishReason.STOP if is_last else None))

    delivering = asyncio.create_task(deliver())
    try:
        return [token async for output in stream for token in output.token_ids]
    finally:
        delivering.cancel()


async def test_outputs_in_time_pass() -> None:
    assert await taken(leg(5, 5), 0.05, 0, 0) == [0, 1, 2]


@pytest.mark.parametrize(("first", "later"), [(0.01, 5), (5, 0.01)])
async def test_one_that_is_late_is_a_stall(first: float, later: float) -> None:
    pauses = (5.0,) if first < later else (0, 5.0)
    with pytest.raises(WorkerStalled, match=r"decode-0 gave no output within 0\.01 s"):
        await taken(leg(first, later), *pauses)
