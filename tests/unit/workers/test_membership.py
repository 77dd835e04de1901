import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import grpc.aio
import pytest
import pytest_asyncio

from llmserve.core.adapters import AdapterReport
from llmserve.core.request import EngineLoad
from llmserve.core.tasks import TaskOwner
from llmserve.rpc.adapters import decode_reports
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2
from llmserve.workers.membership import Drainer, RouterMembership

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


class FakeRouter:
    """Stands for a channel. told: how many reports each heartbeat carried; None: it said nothing of them.
    knows: all reports, as the router has them. lost: `request` or `answer` of the next heartbeat, which
    then fails."""

    def __init__(self) -> None:
        self.told: list[int | None] = []
        self.knows: dict[int, AdapterReport] = {}
        self.lost = ""
        self.on_loss: Callable[[], None] = lambda: None

    def unary_unary(self, path: str, **_: object) -> Callable[..., Awaitable[Any]]:
        return partial(self._call, path.rpartition("/")[2])

    stream_stream = unary_unary  # that of apiservers

    async def _call(self, method: str, request: Any, timeout: float) -> Any:
        if method == "Register":
            return router_pb2.RegisterResponse(heartbeat_seconds=1.0)
        lost, self.lost = self.lost, ""
        if lost != "request":
            self._hear(request)
        if lost:
            self.on_loss()
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "lost", "")
        return router_pb2.HeartbeatResponse(heartbeat_seconds=1.0)

    def _hear(self, request: router_pb2.HeartbeatRequest) -> None:
        if not request.HasField("adapters"):
            self.told.append(None)
            return
        self.told.append(len(request.adapters.reports) + len(request.adapters.ended))
        self.knows = decode_reports(request.adapters).applied_to(self.knows)


class ReportingWorker:
    """A worker with 1,000 adapters, and its heartbeats to one router."""

    def __init__(self, router: FakeRouter) -> None:
        self.reports = {number: AdapterReport(number) for number in range(1000)}
        self.router = router

        async def load() -> EngineLoad:
            return EngineLoad()

        async def wait_for_change(seconds: float) -> None:
            await self.beat.get()

        self.beat: asyncio.Queue[None] = asyncio.Queue()
        self.membership = RouterMembership(
            cast(
                "Any",
                SimpleNamespace(info=common_pb2.WorkerInfo(), load=load, wait_for_change=wait_for_change),
            ),
            {"router": cast("Any", router)},
            cast("Any", None),
            cast("Any", SimpleNamespace(draining=False)),
            cast("Any", SimpleNamespace(reports=lambda: tuple(self.reports.values()))),
        )

    async def heartbeat(self) -> None:
        """Returns when the router has answered one."""
        self.beat.put_nowait(None)
        await asyncio.sleep(60)

    def runs(self, number: int, legs: int = 1) -> None:
        self.reports[number] = replace(self.reports[number], running=legs)


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[ReportingWorker]:
    tasks = TaskOwner("test")
    one = ReportingWorker(FakeRouter())
    tasks.spawn("membership", one.membership.run())
    await asyncio.sleep(60)
    yield one
    await tasks.aclose()


async def test_only_reports_that_changed_travel(worker: ReportingWorker) -> None:
    router = worker.router
    await worker.heartbeat()
    worker.runs(3)
    worker.runs(7, legs=2)
    await worker.heartbeat()
    worker.runs(3, legs=0)
    del worker.reports[7]
    worker.reports[1000] = AdapterReport(1000)
    await worker.heartbeat()
    await worker.heartbeat()
    assert router.told == [1000, None, 2, 3, None]
    assert router.knows == worker.reports


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_all_travel_when_nobody_knows_what_the_router_has_heard(
    worker: ReportingWorker, lost: str
) -> None:
    worker.router.lost = lost
    worker.router.on_loss = lambda: worker.runs(3, legs=0)  # as in the last heartbeat that was answered
    worker.runs(3)
    await worker.heartbeat()
    assert worker.router.told[-1] == 1000
    assert worker.router.knows == worker.reports


async def test_heartbeats_go_on_after_an_error_that_nobody_foresaw(
    worker: ReportingWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that is silent is given up, with all that it runs."""

    def fail() -> None:
        raise RuntimeError("a bug")

    worker.router.lost, worker.router.on_loss = "answer", fail
    await worker.heartbeat()
    assert "a bug" in caplog.text
    heard = len(worker.router.told)
    await worker.heartbeat()
    assert len(worker.router.told) == heard + 1
