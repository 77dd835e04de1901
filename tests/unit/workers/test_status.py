"""When a worker speaks of itself: now and then, and sooner when its engine has come to rest."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llmserve.core.hang import HangLimits
from llmserve.metrics.worker import WorkerMetrics
from llmserve.rpc.gen.llmserve.v1 import common_pb2
from llmserve.workers.status import EngineHealth, WorkerStatus
from tests.unit.workers.test_engine_health import FakeEngine


async def _nothing(error: Exception) -> None:
    pass


@pytest.fixture
def status() -> WorkerStatus:
    engine: Any = FakeEngine(0)
    watch = EngineHealth(engine, HangLimits(10.0, 10.0), _nothing)
    return WorkerStatus(common_pb2.WorkerInfo(), engine, WorkerMetrics(CollectorRegistry()), watch)


async def test_an_engine_that_comes_to_rest_is_told_of_soon(status: WorkerStatus) -> None:
    waiting = asyncio.create_task(status.wait_for_change(60.0))
    status.pauses(lambda: False)
    async with asyncio.timeout(30):
        await waiting


async def test_pauses_between_requests_are_not_told_of(status: WorkerStatus) -> None:
    waiting = asyncio.create_task(status.wait_for_change(60.0))
    for _ in range(6):
        status.pauses(lambda: False)
        await asyncio.sleep(0.05)
    status.pauses(lambda: True)  # the next request is there when it is looked for
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    waiting.cancel()
    assert not done


async def test_once_for_each_change(status: WorkerStatus) -> None:
    status.changed()
    await status.wait_for_change(60.0)
    waiting = asyncio.create_task(status.wait_for_change(60.0))
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    waiting.cancel()
    assert not done


async def test_else_when_the_time_is_over(status: WorkerStatus) -> None:
    async with asyncio.timeout(30):
        await status.wait_for_change(0.01)
