"""Events carry more tokens while the loop is late, and one token again afterwards."""

import asyncio
import time
from contextlib import suppress

import pytest

from llmserve.apiserver.engine import stream_interval
from llmserve.apiserver.engine.stream_interval import MOST_TOKENS, adapt_interval, next_interval


@pytest.mark.parametrize(
    ("tokens", "late_seconds", "following"),
    [
        (1, 0.101, 2),
        (2, 1.0, 4),
        (4, 0.2, MOST_TOKENS),
        (MOST_TOKENS, 5.0, MOST_TOKENS),
        (4, 0.1, 4),
        (4, 0.02, 4),
        (4, 0.019, 2),
        (2, 0.0, 1),
        (1, 0.0, 1),
    ],
)
def test_the_interval_follows_how_late_the_loop_is(tokens: int, late_seconds: float, following: int) -> None:
    assert next_interval(tokens, late_seconds) == following


async def test_a_loop_that_is_busy_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_interval, "_LOOK_SECONDS", 0.01)
    chosen: list[int] = []
    looking = asyncio.create_task(adapt_interval(chosen.append))
    await asyncio.sleep(0)
    time.sleep(0.12)  # noqa: ASYNC251 - the loop is busy
    async with asyncio.timeout(10):
        while chosen[-1:] != [1]:  # noqa: ASYNC110 - the state of another task
            await asyncio.sleep(0.01)
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking
    assert (chosen[0], chosen[-1]) == (2, 1), "a busy machine may make it late again in between"
