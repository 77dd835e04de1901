"""Processes that come and go while the supervisor runs; their own supervisors are fakes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from llmserve.config.plan import ProcessRole, ProcessSpec
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.runner.board import Board
from llmserve.runner.supervisor import StopRequest, Supervisor


class FakeProcess:
    """A ProcessSupervisor that a test makes ready, or fail."""

    def __init__(self, name: str, log: list[str], after: tuple[str, ...] = ()) -> None:
        role = ProcessRole(name.rpartition("-")[0].rpartition("-")[2])
        self.spec = ProcessSpec(role, name, "m", after=after)
        self.ready, self.failure = asyncio.Event(), asyncio.Event()
        self.error: LLMServeError = StartFailed(f"{name} cannot start")
        self._log = log

    async def run(self) -> None:
        self._log.append(f"run {self.spec.name}")
        await self.failure.wait()
        raise self.error

    async def stop(self, forced: asyncio.Event) -> None:
        self._log.append(f"stop {self.spec.name}")


class Cluster:
    """A router and a worker; `wanted`: the names of the workers that are to be started."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.router = FakeProcess("router-0", self.log)
        self.worker = FakeProcess("decode-0", self.log, after=("router-0",))
        self.unwanted: set[str] = set()
        self.stop, self.ready = StopRequest(), asyncio.Event()
        names = ["router-0", "decode-0", "b-decode-0", "b-prefill-0"]
        board = Board(names, lambda: 0.0)
        self.supervisor = Supervisor(
            [self.router, self.worker],  # type: ignore[list-item]
            board,
            self.stop,
            self._wants,
        )
        self.task = asyncio.ensure_future(self.supervisor.run(self._on_ready, lambda: None))

    async def _wants(self, spec: ProcessSpec) -> bool:
        return spec.name not in self.unwanted

    def _on_ready(self) -> None:
        self.ready.set()

    def process(self, name: str) -> FakeProcess:
        return FakeProcess(name, self.log, after=("router-0",))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    await settle()
    yield made
    made.stop.asked.set()
    await asyncio.wait([made.task])


async def test_more_processes_are_started_and_waited_for(cluster: Cluster) -> None:
    more = [cluster.process("b-prefill-0"), cluster.process("b-decode-0")]
    adding = asyncio.ensure_future(cluster.supervisor.add(more))  # type: ignore[arg-type]
    await settle()
    assert cluster.log == ["run router-0"], "they need the router"
    cluster.router.ready.set()
    await settle()
    assert cluster.log[1:] == ["run decode-0", "run b-prefill-0", "run b-decode-0"]
    more[0].ready.set()
    await settle()
    assert not adding.done()
    more[1].ready.set()
    await adding
    assert not cluster.ready.is_set(), "the cluster waits for the processes of its plan"
    cluster.worker.ready.set()
    await settle()
    assert cluster.ready.is_set()
    cluster.log.clear()
    await cluster.supervisor.remove(["b-prefill-0", "b-decode-0", "never-there"])
    assert cluster.log == ["stop b-prefill-0", "stop b-decode-0"]
    await cluster.supervisor.remove(["b-prefill-0"])
    assert len(cluster.log) == 2


async def test_one_that_cannot_start_fails_its_model_and_not_the_cluster(cluster: Cluster) -> None:
    cluster.router.ready.set()
    more = [cluster.process("b-prefill-0"), cluster.process("b-decode-0")]
    adding = asyncio.ensure_future(cluster.supervisor.add(more))  # type: ignore[arg-type]
    await settle()
    more[1].failure.set()
    with pytest.raises(StartFailed, match="b-decode-0 cannot start"):
        await adding
    await cluster.supervisor.remove(["b-prefill-0", "b-decode-0"])
    assert not cluster.task.done()


async def test_one_of_the_plan_that_cannot_start_ends_the_cluster(cluster: Cluster) -> None:
    cluster.router.failure.set()
    with pytest.raises(StartFailed, match="router-0 cannot start"):
        await cluster.task


async def test_what_was_added_is_stopped_with_the_cluster(cluster: Cluster) -> None:
    cluster.router.ready.set()
    more = cluster.process("b-decode-0")
    more.ready.set()
    await cluster.supervisor.add([more])  # type: ignore[list-item]
    cluster.stop.asked.set()
    await cluster.task
    assert cluster.log[-3:] == ["stop decode-0", "stop b-decode-0", "stop router-0"]
    with pytest.raises(StartFailed, match="the cluster stops"):
        await cluster.supervisor.add([cluster.process("b-prefill-0")])  # type: ignore[list-item]


async def test_one_that_is_not_wanted_is_not_started_and_not_waited_for() -> None:
    cluster = Cluster()
    cluster.unwanted.add("decode-0")
    await settle()
    cluster.router.ready.set()
    await settle()
    assert cluster.log == ["run router-0"]
    assert not cluster.ready.is_set()
    await cluster.supervisor.remove(["decode-0"])
    await settle()
    assert cluster.ready.is_set()
    cluster.stop.asked.set()
    await cluster.task
