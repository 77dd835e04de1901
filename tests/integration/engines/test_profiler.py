"""An engine's profile, by vLLM's own profiler with the settings of our engines, without an engine."""

import asyncio
import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vllm.config import ProfilerConfig
from vllm.profiler.wrapper import create_worker_profiler

from llmserve.config.schema import EngineConfig, KvCacheConfig, TransferConfig
from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.engines.spec import EngineSpec
from llmserve.engines.vllm.args import engine_args
from llmserve.engines.vllm.engine import VllmEngine

NAME = "large-decode-0"


class Core:
    """Does what vLLM's worker does when it is told to profile, and computes something meanwhile."""

    def __init__(self, config: ProfilerConfig) -> None:
        self._config = config
        self._profiler = create_worker_profiler(config, worker_name="rank0", local_rank=0)
        self.orders: list[bool] = []

    async def profile_async(self, is_start: bool = True, profile_prefix: str | None = None) -> None:
        self.orders.append(is_start)
        if is_start:
            self._profiler.set_output_name(f"{profile_prefix}_rank0")
            self._profiler.start()
            torch.ones(64, 64) @ torch.ones(64, 64)
        else:
            self._profiler.stop()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[VllmEngine]:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    spec = EngineSpec(
        worker_id=WorkerId(NAME),
        epoch=1,
        role=WorkerRole.DECODE,
        model_dir=tmp_path,
        model_name="tiny",
        model_identity="tiny",
        engine=EngineConfig(),
        kv_cache=KvCacheConfig(),
        transfer=TransferConfig(),
    )
    made = VllmEngine(spec)
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
        made._scratch = SimpleNamespace(name=scratch)  # type: ignore[assignment]
        args = engine_args(spec, "ipc:///x", str(Path(scratch) / "card.json"))
        made._core = Core(args.profiler_config)
        yield made


async def test_a_profile_has_a_trace_and_a_table(engine: VllmEngine) -> None:
    profile = await engine.profile(0.01)
    trace, table = profile.files
    assert trace.name.startswith(f"{NAME}_rank0.")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any(event["name"] == "aten::mm" for event in events)
    assert profile.summary == table.read_text()
    assert "aten::mm" in profile.summary
    again = await engine.profile(0.01)
    assert len(again.files) == 2, "those of the profile before are gone"
    assert trace not in again.files


async def test_a_caller_that_is_cancelled_ends_the_recording(engine: VllmEngine) -> None:
    recording = asyncio.ensure_future(engine.profile(60.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording
    assert isinstance(engine._core, Core)
    assert engine._core.orders == [True, False]
