"""What a hand-over adds between prefill's end and decode's first step: pulled then, or pushed meanwhile.

Two vLLM engines on a core each, driven as the apiserver drives them, without it. The two modes take turns,
prompt by prompt. Added is the time from prefill's token to decode's first one, less the median of the decode
steps that follow; hidden is the share of what a pull adds that a push does not.
"""

import argparse
import asyncio
import itertools
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.table import Figure, markdown
from llmserve.config.load import load_manifest
from llmserve.config.schema import EngineConfig, KvCacheConfig, TransferConfig
from llmserve.core.ids import RequestId, TransferId, WorkerId
from llmserve.core.kv_params import PushParams, prefill_params
from llmserve.core.request import EngineOutput, EngineRequest, KvPeer, SamplingLimits, WorkerRole
from llmserve.engines.base import Engine, EngineInfo
from llmserve.engines.spec import EngineSpec
from llmserve.models import resolve

PROMPT_TOKENS = (64, 200, 500, 1000, 1500)
OUTPUT_TOKENS = 8
_SETTLE_SECONDS = 2.0  # for the engines to measure their transports


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=9, help="hand-overs of each kind")


def run(repeats: int) -> str:
    return asyncio.run(_run(repeats))


async def _run(repeats: int) -> str:
    model = Path(resolve(load_manifest(Path("llmserve.yaml")).model).path)
    async with (
        _started(model, WorkerRole.PREFILL, 0) as prefill,
        _started(model, WorkerRole.DECODE, 1) as decode,
    ):
        pair = Pair(prefill, decode)
        await pair.set_peers()
        await asyncio.sleep(_SETTLE_SECONDS)
        rows = [await _row(pair, length, repeats) for length in PROMPT_TOKENS]
    headings = (
        "prompt tokens",
        "prefill s, pull",
        "prefill s, push",
        "added ms, pull",
        "added ms, push",
        "hidden",
    )
    return markdown(headings, rows)


async def _row(pair: "Pair", length: int, repeats: int) -> tuple[object, ...]:
    await pair.pulled(length)  # warm both
    await pair.pushed(length)
    runs = [(await pair.pulled(length), await pair.pushed(length)) for _ in range(repeats)]
    pulled, pushed = ([one for one, _ in runs], [two for _, two in runs])
    added = [Figure.of([1e3 * one.added_seconds for one in mode]) for mode in (pulled, pushed)]
    prefill = [Figure.of([one.prefill_seconds for one in mode]) for mode in (pulled, pushed)]
    hidden = 1 - added[1].median / added[0].median
    return (
        length,
        *(figure.text() for figure in prefill),
        *(figure.text(1) for figure in added),
        f"{hidden:.0%}",
    )


@dataclass(frozen=True, slots=True)
class Timing:
    prefill_seconds: float
    added_seconds: float


@dataclass(frozen=True, slots=True)
class Pair:
    prefill: "Running"
    decode: "Running"
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def set_peers(self) -> None:
        """Both ways. The router has only decode meet prefill: there, a first push is not measured yet."""
        for one, other in ((self.prefill, self.decode), (self.decode, self.prefill)):
            peer = KvPeer(other.worker_id, other.epoch, other.info.handover_endpoints)
            await one.engine.set_peers([peer])

    async def pulled(self, length: int) -> Timing:
        prompt, name = _prompt(length), f"pull-{next(self.numbers)}"
        started = time.perf_counter()
        await self.prefill.add(name, prompt, 1, {"do_remote_decode": True})
        ((first, output),) = await self.prefill.outputs(name)
        await self.decode.add(name, [*prompt, *output.token_ids], OUTPUT_TOKENS, output.kv_transfer_params)
        return _timing(started, first, await self.decode.outputs(name))

    async def pushed(self, length: int) -> Timing:
        prompt, name = _prompt(length), f"push-{next(self.numbers)}"
        endpoints = self.prefill.info.handover_endpoints
        card = PushParams(
            TransferId(name), self.prefill.worker_id, self.prefill.epoch, endpoints, length, continues=True
        )
        started = time.perf_counter()
        await self.decode.add(name, prompt, OUTPUT_TOKENS, card.to_params())
        await self.prefill.add(name, prompt, 1, prefill_params(TransferId(name)))
        ((first, _),) = await self.prefill.outputs(name)
        outputs = await self.decode.outputs(name)
        report = outputs[0][1].handover
        assert report is not None
        assert report.pushed, report
        return _timing(started, first, outputs)


def _timing(started: float, first: float, outputs: Sequence[tuple[float, EngineOutput]]) -> Timing:
    times = [when for when, _ in outputs]
    step = statistics.median(later - earlier for earlier, later in itertools.pairwise(times))
    return Timing(first - started, times[0] - first - step)


def _prompt(length: int) -> list[int]:
    """Never seen before by any cache."""
    return [random.randrange(1000, 40_000) for _ in range(length)]


class Running:
    """A started engine, and when each of its outputs came."""

    def __init__(self, engine: Engine, info: EngineInfo, worker_id: WorkerId, epoch: int) -> None:
        self.engine, self.info, self.worker_id, self.epoch = engine, info, worker_id, epoch
        self._outputs: defaultdict[str, list[tuple[float, EngineOutput]]] = defaultdict(list)
        self._changed = asyncio.Event()

    async def collect(self) -> None:
        while True:
            outputs = await self.engine.next_outputs()
            now = time.perf_counter()
            for output in outputs:
                self._outputs[output.request_id].append((now, output))
            self._changed.set()

    async def add(
        self, name: str, prompt: Sequence[int], max_tokens: int, kv: Mapping[str, Any] | None
    ) -> None:
        limits = SamplingLimits(max_tokens, min_tokens=max_tokens)
        await self.engine.add(EngineRequest(RequestId(name), prompt, limits, kv_transfer_params=kv))

    async def outputs(self, name: str) -> list[tuple[float, EngineOutput]]:
        while not (found := self._outputs[name]) or found[-1][1].finish_reason is None:
            self._changed.clear()
            await self._changed.wait()
        return found


@asynccontextmanager
async def _started(model: Path, role: WorkerRole, core: int) -> AsyncIterator[Running]:
    from llmserve.engines.vllm.engine import VllmEngine

    os.environ.update(VLLM_CPU_OMP_THREADS_BIND=str(core), VLLM_LOGGING_LEVEL="ERROR")
    spec = EngineSpec(
        worker_id=WorkerId(role.value),
        epoch=time.time_ns(),
        role=role,
        model_dir=model,
        model_name=model.name,
        model_identity=str(model),
        engine=EngineConfig(max_model_len=2048),
        kv_cache=KvCacheConfig(),
        transfer=TransferConfig(),
    )
    engine = VllmEngine(spec)
    try:
        running = Running(engine, await engine.start(), spec.worker_id, spec.epoch)
        collector = asyncio.ensure_future(running.collect())
        yield running
        collector.cancel()
    finally:
        await engine.aclose()
