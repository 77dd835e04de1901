"""Backoff grows to its bound, with jitter, and starts anew after a success."""

import asyncio
import random

import pytest

from llmserve.rpc.client import Backoff


def test_grows_to_the_bound_and_resets() -> None:
    backoff = Backoff(0.1, 1.0, 2.0, random.Random(1))
    waits = [backoff.next() for _ in range(6)]
    for wait, full in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0], strict=True):
        assert full / 2 <= wait <= full
    backoff.reset()
    assert backoff.next() <= 0.1


async def test_a_task_ends_whose_cancellation_was_swallowed() -> None:
    waiting = asyncio.Event()

    async def tries() -> None:
        while True:
            try:
                waiting.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass  # as gRPC does, when a call fails while it is being cancelled
            await Backoff(60, 60).pause()

    task = asyncio.create_task(tries())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
