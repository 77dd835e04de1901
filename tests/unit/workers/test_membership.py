import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from llmserve.core.tasks import TaskOwner
from llmserve.workers.membership import Drainer

pytestmark = pytest.mark.virtual_time


class Load:
    busy = False

    async def is_busy(self) -> bool:
        return self.busy


@pytest.fixture
def load() -> Load:
    return Load()


@pytest_asyncio.fixture
async def drainer(load: Load) -> AsyncIterator[Drainer]:
    tasks = TaskOwner("test")
    yield Drainer(load.is_busy, tasks)
    await tasks.aclose()


async def test_an_idle_worker_is_done_after_a_quiet_moment(drainer: Drainer) -> None:
    drainer.order(True, 5)
    assert drainer.draining
    assert not drainer.done.is_set()
    await asyncio.wait_for(drainer.done.wait(), 1)


async def test_what_runs_is_waited_for(drainer: Drainer, load: Load) -> None:
    load.busy = True
    drainer.order(True, 5)
    await asyncio.sleep(2)  # several quiet moments
    assert not drainer.done.is_set()
    load.busy = False
    await asyncio.wait_for(drainer.done.wait(), 1)


async def test_not_for_longer_than_the_order_says(drainer: Drainer, load: Load) -> None:
    load.busy = True
    drainer.order(True, 2)
    drainer.order(True, 60)
    await asyncio.wait_for(drainer.done.wait(), 2.2)


async def test_an_order_to_stay_ends_it(drainer: Drainer, load: Load) -> None:
    load.busy = True
    drainer.order(True, 1)
    await asyncio.sleep(0.2)
    drainer.order(False, 0)
    assert not drainer.draining
    await asyncio.sleep(2)
    assert not drainer.done.is_set()


async def test_an_order_to_stay_comes_too_late_when_it_is_done(drainer: Drainer) -> None:
    drainer.order(True, 5)
    await asyncio.wait_for(drainer.done.wait(), 1)
    drainer.order(False, 0)
    assert drainer.draining
