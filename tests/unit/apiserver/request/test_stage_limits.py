import asyncio
from collections.abc import AsyncIterator

import pytest

from llmserve.apiserver.request.attempt import WithDeadlines
from llmserve.core.errors import WorkerStalled
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput


async def leg(*pauses_seconds: float) -> AsyncIterator[EngineOutput]:
    for index, seconds in enumerate(pauses_seconds):
        await asyncio.sleep(seconds)
        yield EngineOutput(RequestId("r"), (index,))


async def taken(timely: WithDeadlines) -> list[int]:
    return [token async for output in timely for token in output.token_ids]


async def test_outputs_in_time_pass() -> None:
    assert await taken(WithDeadlines(leg(0.05, 0, 0), "decode-0", 5, 5)) == [0, 1, 2]


@pytest.mark.parametrize(("first", "later"), [(0.01, 5), (5, 0.01)])
async def test_one_that_is_late_is_a_stall(first: float, later: float) -> None:
    pauses = (5.0,) if first < later else (0, 5.0)
    with pytest.raises(WorkerStalled, match=r"decode-0 gave no output within 0\.01 s"):
        await taken(WithDeadlines(leg(*pauses), "decode-0", first, later))
