"""What a step reports of a pull comes with the next output of its request, and with nothing else."""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import SchedulerStats

from llmserve.config.schema import EngineConfig
from llmserve.core.ids import LeaseId, RequestId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.core.request import EngineOutput, EngineRequest, HandoverReport, SamplingLimits
from llmserve.engines.vllm.engine import VllmEngine
from tests.integration.engines.tiny_spec import tiny_spec

REPORT = HandoverReport("tcp", 4096, 0.25, ())


class Core:
    """Stands for vLLM's client: takes what it is told, and returns the steps that a test puts into it."""

    def __init__(self) -> None:
        self.steps: list[EngineCoreOutputs] = []

    async def add_request_async(self, request: Any) -> None:
        pass

    async def abort_requests_async(self, request_ids: Sequence[str]) -> None:
        pass

    async def get_output_async(self) -> EngineCoreOutputs:
        return self.steps.pop(0)


class Steps:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._core = Core()
        self.engine = VllmEngine(tiny_spec(folder, EngineConfig()))
        monkeypatch.setattr(self.engine, "_running", lambda: self._core)
        monkeypatch.setattr(self.engine, "_info", SimpleNamespace(max_model_len_tokens=100))
        monkeypatch.setattr(self.engine, "_kv_events", SimpleNamespace())

    async def add(self, name: str) -> None:
        table = BlockTable((0,))
        ticket = PullParams(WorkerId("prefill-0"), 1, LeaseId("1"), ("127.0.0.1:9",), table, 8, 16, 30.0)
        request = EngineRequest(
            RequestId(name), tuple(range(8)), SamplingLimits(4), kv_transfer_params=ticket.to_params()
        )
        await self.engine.add(request)

    async def step(self, *names: str, pulled: str = "", ended: bool = False) -> Sequence[EngineOutput]:
        finish = FinishReason.STOP if ended else None
        outputs = [
            EngineCoreOutput(request_id=name, new_token_ids=[1], finish_reason=finish) for name in names
        ]
        rows = {"pulls": [[pulled, *astuple(REPORT)]]} if pulled else None
        stats = SchedulerStats(kv_connector_stats=rows)
        self._core.steps.append(EngineCoreOutputs(outputs=outputs, scheduler_stats=stats))
        return await self.engine.next_outputs()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Steps:
    return Steps(monkeypatch, tmp_path)


async def test_it_comes_once_with_the_next_output(steps: Steps) -> None:
    await steps.add("r")
    await steps.add("other")
    (other,) = await steps.step("other", pulled="r")
    assert other.handover is None
    assert [output.handover for output in await steps.step("r")] == [REPORT]
    assert [output.handover for output in await steps.step("r")] == [None]


@pytest.mark.parametrize("ends_by", ["abort", "itself"])
async def test_one_that_comes_after_its_request_is_kept_for_nobody(steps: Steps, ends_by: str) -> None:
    """A pull goes on when its request was aborted, and its report would stay for ever."""
    await steps.add("r")
    await steps.add("other")
    if ends_by == "abort":
        await steps.engine.abort([RequestId("r")])
    else:
        await steps.step("r", ended=True)
    await steps.step("other", pulled="r")
    await steps.add("r")
    assert [output.handover for output in await steps.step("r")] == [None]
