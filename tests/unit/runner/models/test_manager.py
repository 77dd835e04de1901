"""The manager of models: what it starts and ends when the router orders it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.config.wanted_models import ModelOrder, ModelState
from llmserve.core.errors import ModelNotFound, StartFailed
from llmserve.core.tasks import TaskOwner
from llmserve.runner.models import manager
from llmserve.runner.models.manager import ModelManager, PlannedModel
from llmserve.runner.models.memory import NOTHING, NeededMemory

MANIFEST = Manifest.model_validate({"kind": "LLMServe", "models": [{"source": "hub:o/a", "name": "a"}]})
A = ModelOrder(1, "a", '{"source":"hub:o/a","name":"a"}', declared=True)


def order(name: str, number: int, **more: object) -> ModelOrder:
    return ModelOrder(number, name, f'{{"source":"hub:o/{name}","name":"{name}"}}', **more)  # type: ignore[arg-type]


@dataclass
class FakeProcesses:
    """A ModelProcesses whose steps a test lets end, or fail."""

    done: list[str] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)
    held_up: dict[str, asyncio.Event] = field(default_factory=dict)
    needed: NeededMemory = NOTHING
    coming: list[Sequence[NeededMemory]] = field(default_factory=list)
    leaving: list[NeededMemory] = field(default_factory=list)
    on_progress: Callable[[str], None] | None = None
    on_start: Callable[[str], None] | None = None

    async def _step(self, what: str) -> None:
        self.done.append(what)
        if what in self.held_up:
            try:
                await self.held_up[what].wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)  # giving up takes time
                self.done.append(f"gave up: {what}")
                raise
        if what in self.failures:
            raise self.failures[what]

    async def prepare(self, manifest: Manifest, on_progress: Callable[[str], None]) -> str:
        self.on_progress = on_progress
        await self._step(f"prepare {manifest.model.served_name}")
        return f"/models/{manifest.model.served_name}"

    async def plan(self, manifest: Manifest, directory: str, swap: Sequence[str]) -> PlannedModel:
        name = manifest.model.served_name
        await self._step(f"plan {name} in {directory} instead of {','.join(swap)}")
        worker = ProcessSpec(ProcessRole.AGGREGATED, f"{name}-0", "m", model=name)
        return PlannedModel(directory, (worker,), self.needed)

    async def check_room(
        self, name: str, needed: NeededMemory, leaving: NeededMemory, coming: Sequence[NeededMemory]
    ) -> None:
        self.coming.append(coming)
        self.leaving.append(leaving)
        await self._step(f"check {name}")

    async def start(
        self,
        order: ModelOrder,
        manifest: Manifest,
        planned: PlannedModel,
        on_progress: Callable[[str], None],
    ) -> None:
        self.on_start = on_progress
        await self._step(f"start {planned.workers[0].name}")

    async def stop(self, workers: Sequence[str]) -> None:
        await self._step(f"stop {','.join(workers)}")


def _nothing() -> None:
    """Nobody listens."""


class Followed:
    """A manager of a cluster whose only model runs. tell: is called when a report has changed."""

    def __init__(self) -> None:
        self.processes = FakeProcesses()
        self.tell: Callable[[], None] = _nothing
        self.owner = TaskOwner("test")
        self.manager = ModelManager(MANIFEST, {"a": ["a-0"]}, self.processes, self.owner, lambda: self.tell())
        self.manager.apply([A])
        self.manager.became_ready("a", "/models/a", NeededMemory(7.0))

    def states(self) -> dict[int, ModelState]:
        return {report.number: report.state for report in self.manager.reports()}

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def followed() -> Followed:
    return Followed()


async def test_a_model_is_fetched_checked_and_started(followed: Followed) -> None:
    followed.processes.held_up["prepare b"] = asyncio.Event()
    followed.manager.apply([A, order("b", 2)])
    await followed.settle()
    assert followed.processes.on_progress is not None
    followed.processes.on_progress("42 %")
    assert [(one.state, one.detail) for one in followed.manager.reports()][1] == (ModelState.FETCHING, "42 %")
    followed.processes.held_up["prepare b"].set()
    await followed.settle()
    assert followed.processes.done == ["prepare b", "plan b in /models/b instead of ", "check b", "start b-0"]
    ready = followed.manager.reports()[1]
    assert (ready.number, ready.state, ready.directory) == (2, ModelState.READY, "/models/b")
    assert followed.processes.leaving == [NOTHING]
    assert followed.manager.names() == ["a", "b"]


async def test_it_has_begun_when_the_engines_of_the_first_orders_are_asked_for(
    followed: Followed,
) -> None:
    processes, owner = FakeProcesses(), TaskOwner("test")
    processes.held_up = {"prepare b": asyncio.Event(), "start b-0": asyncio.Event()}
    processes.failures["prepare c"] = StartFailed("the hub does not answer")
    made = ModelManager(MANIFEST, {}, processes, owner, _nothing)
    begun = asyncio.ensure_future(made.until_begun())
    await followed.settle()
    assert not begun.done(), "without orders"
    made.apply([order("b", 2), order("c", 3), order("d", 4, pull=True)])
    processes.held_up["prepare b"].set()
    await followed.settle()
    assert not begun.done()
    assert processes.on_start is not None
    processes.on_start("b-0: 0/1 ready")
    await followed.settle()
    assert begun.done()
    assert made.reports()[0].detail == "b-0: 0/1 ready"
    await owner.aclose()


async def test_a_pull_takes_no_place_until_a_load_asks_for_more(followed: Followed) -> None:
    followed.manager.apply([A, order("b", 2, pull=True)])
    await followed.settle()
    assert followed.processes.done == ["prepare b"]
    assert followed.manager.reports()[1].directory == "/models/b"
    assert followed.states()[2] is ModelState.FETCHED
    assert followed.manager.names() == ["a"]
    followed.manager.apply([A, order("b", 2)])
    await followed.settle()
    assert followed.processes.done[1:] == ["plan b in /models/b instead of ", "check b", "start b-0"]
    assert followed.states()[2] is ModelState.READY


async def test_a_swap_waits_until_its_place_is_free(followed: Followed) -> None:
    b = order("b", 2, swap="a", may_start=False)
    followed.manager.apply([A, b])
    await followed.settle()
    assert followed.processes.done == ["prepare b", "plan b in /models/b instead of a-0", "check b"]
    assert followed.processes.leaving == [NeededMemory(7.0)], "what a has counts as free"
    assert [report.detail for report in followed.manager.reports()][1] == "until a has left"
    followed.manager.apply([b])
    await followed.settle()
    assert followed.states() == {2: ModelState.STARTING}
    followed.manager.apply([order("b", 2, swap="a")])
    await followed.settle()
    assert followed.processes.done[3:] == ["stop a-0", "start b-0"]
    assert followed.states() == {2: ModelState.READY}


async def test_engines_that_do_not_end_are_ended_again(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a model that is unloaded, and those of a load that has failed."""
    monkeypatch.setattr(manager, "_AGAIN_SECONDS", 0.0)
    away = StartFailed("Kubernetes: is away")
    followed.processes.failures = {"stop a-0": away, "stop b-0": away, "start b-0": StartFailed("no GPU")}
    followed.manager.apply([order("b", 2)])
    await followed.settle()
    assert followed.processes.done.count("stop a-0") > 1
    assert followed.processes.done.count("stop b-0") > 1
    assert followed.states() == {1: ModelState.READY, 2: ModelState.STARTING}
    assert {one.detail for one in followed.manager.reports()} == {
        f"its engines have not ended: {away.message}"
    }
    del followed.processes.failures["stop a-0"], followed.processes.failures["stop b-0"]
    await followed.settle()
    assert followed.states() == {2: ModelState.FAILED}
    assert followed.manager.reports()[0].message == "no GPU"


async def test_a_model_that_leaves_is_reported_until_nothing_is_left(followed: Followed) -> None:
    followed.processes.held_up["stop a-0"] = asyncio.Event()
    followed.manager.apply([])
    await followed.settle()
    assert followed.states() == {1: ModelState.READY}
    assert followed.manager.names() == []
    followed.processes.held_up["stop a-0"].set()
    await followed.settle()
    assert followed.states() == {}


@pytest.mark.parametrize("at", ["prepare b", "check b", "start b-0"])
async def test_a_load_that_fails_leaves_nothing_behind(followed: Followed, at: str) -> None:
    """A disk that is full, a model that does not fit, a worker that cannot start."""
    followed.processes.failures[at] = ModelNotFound("No space left on device")
    followed.manager.apply([A, order("b", 2)])
    await followed.settle()
    failed = followed.manager.reports()[1]
    assert (failed.state, failed.error) == (ModelState.FAILED, "ModelNotFound")
    assert failed.message == "No space left on device"
    assert followed.processes.done[-1].startswith("stop ")
    assert followed.manager.names() == ["a"]
    followed.manager.apply([A])
    await followed.settle()
    assert followed.states() == {1: ModelState.READY}
    followed.processes.failures.clear()
    followed.manager.apply([A, order("b", 3)])
    await followed.settle()
    assert followed.states() == {1: ModelState.READY, 3: ModelState.READY}


async def test_a_defect_of_a_load_is_told(followed: Followed, caplog: pytest.LogCaptureFixture) -> None:
    followed.processes.failures["check b"] = ValueError("a defect")
    followed.manager.apply([A, order("b", 2)])
    await followed.settle()
    assert followed.manager.reports()[1].message == "the load failed: ValueError('a defect')"
    assert "a defect" in caplog.text


async def test_an_entry_that_no_manifest_can_have_has_failed(followed: Followed) -> None:
    followed.manager.apply([A, ModelOrder(2, "b", '{"sauce":"x"}')])
    await followed.settle()
    assert followed.manager.reports()[1].error == "InvalidRequest"


async def test_a_load_that_is_given_up_is_stopped(followed: Followed) -> None:
    followed.processes.held_up["start b-0"] = asyncio.Event()
    followed.manager.apply([A, order("b", 2)])
    await followed.settle()
    followed.manager.apply([A])
    await followed.settle()
    assert followed.processes.done[-2:] == ["gave up: start b-0", "stop b-0"], "in this order"
    assert followed.states() == {1: ModelState.READY}


async def test_loads_that_come_together_do_not_count_on_the_same_memory(followed: Followed) -> None:
    followed.processes.needed = NeededMemory(5.0)
    followed.processes.held_up["start b-0"] = asyncio.Event()
    followed.manager.apply([A, order("b", 2)])
    await followed.settle()
    followed.manager.apply([A, order("b", 2), order("c", 3)])
    await followed.settle()
    assert followed.processes.coming == [[], [NeededMemory(5.0)]]
    followed.processes.held_up["start b-0"].set()
    await followed.settle()
    followed.manager.apply([A, order("b", 2), order("c", 3), order("d", 4)])
    await followed.settle()
    assert followed.processes.coming[-1] == [], "those that have started have it already"


async def test_another_router_s_numbers_mean_the_same_models(followed: Followed) -> None:
    followed.manager.apply([ModelOrder(9, "a", '{"source":"hub:o/a","name":"a","share":0.5}', declared=True)])
    await followed.settle()
    assert followed.states() == {9: ModelState.READY}
    assert followed.processes.done == []


@pytest.mark.parametrize(("declared", "done"), [(True, []), (False, ["stop a-0", "prepare a"])])
async def test_only_the_manifest_may_change_keys_of_a_model_that_runs(
    declared: bool, done: list[str]
) -> None:
    """A reload says what of it is live. An operator's entry that differs is another model."""
    processes = FakeProcesses()
    owner = TaskOwner("test")
    manager = ModelManager(MANIFEST, {"a": ["a-0"]}, processes, owner, lambda: None)
    manager.apply([ModelOrder(9, "a", '{"source":"hub:o/other","name":"a"}', declared=declared)])
    for _ in range(20):
        await asyncio.sleep(0)
    assert processes.done[:2] == done


async def test_another_entry_of_a_name_is_another_model(followed: Followed) -> None:
    followed.manager.apply([A, order("b", 2)])
    await followed.settle()
    other = ModelOrder(3, "b", '{"source":"hub:o/other","name":"b"}')
    followed.processes.done.clear()
    followed.manager.apply([A, other])
    await followed.settle()
    assert followed.processes.done[:2] == ["stop b-0", "prepare b"]
    assert followed.states() == {1: ModelState.READY, 3: ModelState.READY}


async def test_a_model_that_was_unloaded_is_not_started_again() -> None:
    owner, processes = TaskOwner("test"), FakeProcesses()
    manager = ModelManager(MANIFEST, {"a": ["a-0"]}, processes, owner, lambda: None)
    waiting = asyncio.ensure_future(manager.wants("a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    manager.apply([order("b", 2)])
    assert not await waiting
    assert manager.reports()[-1].number == 2


async def test_a_model_of_the_manifest_is_started(followed: Followed) -> None:
    assert await followed.manager.wants("a")


async def test_a_router_that_does_not_answer_holds_up_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmserve.runner.models.manager._FIRST_ORDERS_SECONDS", 0.01)
    manager = ModelManager(MANIFEST, {"a": ["a-0"]}, FakeProcesses(), TaskOwner("test"), lambda: None)
    assert await manager.wants("a")


@pytest.mark.parametrize("fails", [False, True])
async def test_each_step_of_a_load_is_told(followed: Followed, fails: bool) -> None:
    told: list[tuple[ModelState, str]] = []
    followed.tell = lambda: told.extend((one.state, one.detail) for one in followed.manager.reports()[1:])
    if fails:
        followed.processes.failures["start b-0"] = StartFailed("no")
    followed.manager.apply([A, order("b", 2)])
    assert told == [(ModelState.FETCHING, "")]
    await followed.settle()
    assert told[1:] == [
        (ModelState.FETCHING, "looking for it"),
        (ModelState.STARTING, ""),
        (ModelState.STARTING, "its engines start"),
        (ModelState.FAILED if fails else ModelState.READY, ""),
    ]


async def test_without_orders_there_are_no_numbers_to_report() -> None:
    manager = ModelManager(MANIFEST, {}, FakeProcesses(), TaskOwner("test"), lambda: None)
    manager.became_ready("a", "/a", NOTHING)
    assert manager.reports() == []


async def test_a_start_that_the_end_of_the_cluster_forbids_has_failed(followed: Followed) -> None:
    followed.processes.failures["start b-0"] = StartFailed("the cluster stops")
    followed.manager.apply([A, order("b", 2)])
    await followed.settle()
    assert followed.manager.reports()[1].message == "the cluster stops"


async def test_engines_that_an_earlier_manager_started_go_on_whatever_goes_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manager, "_AGAIN_SECONDS", 0.0)
    processes, owner = FakeProcesses(), TaskOwner("test")
    processes.failures["start b-0"] = StartFailed("no such image")
    resumed = ModelManager(MANIFEST, {}, processes, owner, _nothing)
    worker = ProcessSpec(ProcessRole.AGGREGATED, "b-0", "m", model="b")
    resumed.resume(order("b", 2), PlannedModel("/models/b", (worker,)), was_ready=True)
    await asyncio.sleep(0)
    (report,) = resumed.reports()
    assert (report.number, report.state, report.detail) == (2, ModelState.STARTING, "no such image")
    del processes.failures["start b-0"]
    async with asyncio.timeout(30):
        while resumed.reports()[0].state is not ModelState.READY:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert set(processes.done) == {"start b-0"}
    resumed.apply([])
    for _ in range(20):
        await asyncio.sleep(0)
    assert processes.done[-1] == "stop b-0"
    await owner.aclose()


async def test_engines_that_an_earlier_manager_began_to_start_fail_as_those_of_a_load() -> None:
    processes, owner = FakeProcesses(), TaskOwner("test")
    processes.failures["start b-0"] = StartFailed("no such image")
    resumed = ModelManager(MANIFEST, {}, processes, owner, _nothing)
    worker = ProcessSpec(ProcessRole.AGGREGATED, "b-0", "m", model="b")
    resumed.resume(order("b", 2), PlannedModel("/models/b", (worker,)), was_ready=False)
    for _ in range(20):
        await asyncio.sleep(0)
    (report,) = resumed.reports()
    assert (report.number, report.state, report.message) == (2, ModelState.FAILED, "no such image")
    assert processes.done == ["start b-0", "stop b-0"]
    await owner.aclose()


@pytest.mark.parametrize("breaks", [False, True])
async def test_engines_that_never_say_that_they_start_hold_nobody_up(breaks: bool) -> None:
    """Because the model leaves before, or because of a mistake in their start."""
    processes, owner = FakeProcesses(), TaskOwner("test")
    resumed = ModelManager(MANIFEST, {}, processes, owner, _nothing)
    worker = ProcessSpec(ProcessRole.AGGREGATED, "b-0", "m", model="b")
    resumed.resume(order("b", 2), PlannedModel("/models/b", (worker,)), was_ready=True)
    if breaks:
        processes.failures["start b-0"] = RuntimeError("a mistake")
    else:
        processes.held_up = {"start b-0": asyncio.Event(), "stop b-0": asyncio.Event()}
    begun = asyncio.ensure_future(resumed.until_begun())
    resumed.apply([order("b", 2)] if breaks else [])
    for _ in range(20):
        await asyncio.sleep(0)
    assert begun.done()
    await owner.aclose()
