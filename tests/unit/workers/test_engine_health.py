import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmserve.core.errors import EngineDead
from llmserve.core.hang import HangLimits
from llmserve.workers.status import EngineHealth

LIMITS = HangLimits(idle_seconds=0.2, busy_seconds=0.4)


class FakeEngine:
    """What the watch asks of an engine. Its process sleeps."""

    def __init__(self, pid: int) -> None:
        self.hangs = False
        self._pid = pid

    async def ping(self) -> None:
        while self.hangs:  # noqa: ASYNC110 - a test sets it
            await asyncio.sleep(0.005)

    def processes(self) -> set[int]:
        return {self._pid}


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen((sys.executable, "-S", "-c", "import time; time.sleep(60)"))
    yield process
    process.kill()
    process.wait()


def _watch(engine: Any, events: list[str]) -> EngineHealth:
    async def on_hang(error: EngineDead) -> None:
        events.append(error.message)

    return EngineHealth(engine, LIMITS, on_hang, tick_seconds=0.01)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what the watch sees
            await asyncio.sleep(0.002)


async def test_an_engine_that_hangs_is_ended_after_its_requests_were_given_back(
    process: subprocess.Popen[bytes],
) -> None:
    engine, events = FakeEngine(process.pid), list[str]()
    watch = _watch(engine, events)
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0.1)
    assert watch.silent_seconds == 0
    engine.hangs = True
    async with asyncio.timeout(30):
        with pytest.raises(EngineDead, match="the engine hangs: it has not answered"):
            await running
    assert watch.stalled
    assert watch.silent_seconds >= 0.2
    assert len(events) == 1
    assert process.wait(30) == -9


async def test_an_engine_that_answers_again_is_left_alone(process: subprocess.Popen[bytes]) -> None:
    engine, events = FakeEngine(process.pid), list[str]()
    watch = _watch(engine, events)
    running = asyncio.create_task(watch.run())
    engine.hangs = True
    await _until(lambda: watch.stalled)
    engine.hangs = False
    await _until(lambda: not watch.stalled)
    assert not running.done()
    assert events == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
