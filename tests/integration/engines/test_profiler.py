"""An engine's profile, by vLLM's own profiler with the settings of our engines, without an engine."""

import asyncio
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vllm.config import ProfilerConfig

from llmserve.cli.profile import summary_of_trace
from llmserve.config.schema import EngineConfig
from llmserve.engines.vllm.args import engine_args
from llmserve.engines.vllm.cpu_worker import CpuWorker
from llmserve.engines.vllm.engine import VllmEngine
from tests.integration.engines.tiny_spec import tiny_spec, write_config

NAME = "large-decode-0"


class Core:
    """Does what vLLM's worker does when it is told to profile, and computes something meanwhile."""

    def __init__(self, config: ProfilerConfig) -> None:
        self._worker = object.__new__(CpuWorker)
        self._worker.profiler_config, self._worker.profiler = config, None
        self._worker.rank = self._worker.local_rank = 0
        self.orders: list[bool] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def profile_async(self, is_start: bool = True, profile_prefix: str | None = None) -> None:
        self.orders.append(is_start)
        self._worker.profile(is_start, profile_prefix)
        if is_start:
            await self.answers.wait()
            torch.ones(64, 64) @ torch.ones(64, 64)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[VllmEngine]:
    spec = tiny_spec(write_config(tmp_path, {"model_type": "llama"}), EngineConfig(), name=NAME)
    made = VllmEngine(spec)
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
        made._scratch = SimpleNamespace(name=scratch)  # type: ignore[assignment]
        args = engine_args(spec, "ipc:///x", str(Path(scratch) / "card.json"))
        made._core = Core(args.profiler_config)
        yield made


async def test_a_profile_is_a_trace(engine: VllmEngine) -> None:
    """And no table of vLLM's, for which the engine would stand still ten times as long."""
    (trace,) = await engine.profile(0.01)
    assert trace.name.startswith(f"{NAME}_rank0.")
    first, *others = summary_of_trace(trace)
    assert re.fullmatch(r"the CPU computed for \d\.\d\d s; most of it", first)
    assert any(re.fullmatch(r" *\d+\.\d % +1 x  aten::mm", line) for line in others)
    (again,) = await engine.profile(0.01)
    assert trace != again
    assert not trace.exists(), "that of the profile before is gone"


async def test_a_caller_that_is_cancelled_ends_the_recording(engine: VllmEngine) -> None:
    recording = asyncio.ensure_future(engine.profile(60.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording
    assert isinstance(engine._core, Core)
    assert engine._core.orders == [True, False]


async def test_one_that_is_cancelled_while_the_engine_begins_does_too(engine: VllmEngine) -> None:
    assert isinstance(engine._core, Core)
    engine._core.answers.clear()
    recording = asyncio.ensure_future(engine.profile(60.0))
    await asyncio.sleep(0)
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording
    assert engine._core.orders == [True, False]
