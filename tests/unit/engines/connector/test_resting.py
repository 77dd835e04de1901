"""When an engine that has nothing to compute goes on. With the real vLLM: conformance/test_engine.py."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmserve.engines.connector import resting

_WAKE_UP: Any = "wake up"


class Waiting(threading.Condition):
    """A condition that never waits, but notes for how long it was to."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return True


@dataclass
class Rank:
    took_change: bool = False
    awaits_change: bool = True
    wakes: list[Callable[[], object]] = field(default_factory=list)

    def rest_between_steps(self, wake: Callable[[], object]) -> None:
        self.wakes.append(wake)


def core_at_rest(batch_queue: object = None) -> tuple[Any, Waiting]:
    requests: queue.Queue[object] = queue.Queue()
    waiting = requests.not_empty = Waiting(requests.mutex)
    return SimpleNamespace(input_queue=requests, batch_queue=batch_queue), waiting


def rest(core: Any, rank: Any) -> None:
    resting.rest(core, rank, _WAKE_UP)


@pytest.mark.parametrize(
    ("rank", "batch_queue", "seconds"),
    [
        (Rank(), None, resting.EMPTY_STEP_SECONDS),
        (Rank(awaits_change=False), None, 0.001),
        (Rank(), (), 0.001),
    ],
    ids=["KV is under way", "something else is", "several steps are in flight"],
)
def test_an_engine_sleeps_until_something_comes(rank: Rank, batch_queue: object, seconds: float) -> None:
    core, waiting = core_at_rest(batch_queue)
    rest(core, rank)
    assert waiting.waits == [seconds]


def test_no_sleep_follows_the_step_in_which_kv_has_arrived() -> None:
    core, waiting = core_at_rest()
    rest(core, Rank(took_change=True))
    assert waiting.waits == []


def test_kv_that_arrives_between_two_steps_ends_the_rest() -> None:
    core, waiting = core_at_rest()
    rank = Rank()
    rest(core, rank)
    rank.wakes[0]()
    rest(core, rank)
    assert len(waiting.waits) == 1
    assert core.input_queue.get_nowait() == (_WAKE_UP, None)


def test_a_request_that_waits_begins_at_once() -> None:
    core, waiting = core_at_rest()
    core.input_queue.put("a request")
    rest(core, Rank())
    assert waiting.waits == []


class Vllm:
    """The end of its step is that of vLLM's. executed: whether a step computes anything."""

    def __init__(self, executed: bool) -> None:
        core, self.waiting = core_at_rest()
        self.input_queue, self.batch_queue = core.input_queue, None
        self.output_queue: queue.Queue[object] = queue.Queue()
        self.scheduler = SimpleNamespace(has_requests=lambda: True)
        self.step_fn: Callable[[], tuple[dict[int, str], bool]] = lambda: ({0: "tokens"}, executed)
        self.executed: list[bool] = []
        self.post_step = self.executed.append

    def _process_engine_step(self) -> bool:
        _, model_executed = self.step_fn()
        if not model_executed and self.scheduler.has_requests():
            time.sleep(0.001)

        return model_executed


@pytest.mark.parametrize("executed", [True, False])
def test_the_step_is_vllm_s_but_for_its_rest(monkeypatch: pytest.MonkeyPatch, executed: bool) -> None:
    monkeypatch.setattr(Vllm, "_process_engine_step", stock := Vllm._process_engine_step)
    rank: Any = Rank()
    resting.install(Vllm, lambda: rank, _WAKE_UP)
    assert Vllm._process_engine_step is not stock
    core = Vllm(executed)
    assert core._process_engine_step() is executed
    assert core.output_queue.get_nowait() == (0, "tokens")
    assert core.executed == [executed]
    assert core.waiting.waits == ([] if executed else [resting.EMPTY_STEP_SECONDS])


class OtherVllm:
    def _process_engine_step(self) -> bool:
        return True


def test_a_vllm_that_is_written_otherwise_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    before = OtherVllm._process_engine_step
    resting.install(OtherVllm, lambda: None, _WAKE_UP)
    assert OtherVllm._process_engine_step is before
    assert "a hand-over takes 3 ms longer" in caplog.text


def test_the_vllm_that_is_installed_is_written_so() -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    core = Path(spec.submodule_search_locations[0]) / "v1/engine/core.py"
    assert resting._WRITTEN in core.read_text()
