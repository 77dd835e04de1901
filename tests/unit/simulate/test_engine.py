"""The engine in virtual time against the sim engine itself."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from llmserve.config.schema import EngineConfig, KvCacheConfig, SimSpec, TransferConfig
from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.request import EngineRequest, SamplingLimits, WorkerRole
from llmserve.engines.sim.engine import SimEngine
from llmserve.engines.spec import EngineSpec
from llmserve.simulate.mix import RequestKind, RequestMix
from llmserve.simulate.report import Goals
from llmserve.simulate.run import Simulation
from llmserve.traces import TracedRequest
from tests.unit.engines.sim.local_fabric import LocalFabric, VirtualStepTimer
from tests.unit.simulate.conftest import MakeShape

SIM = SimSpec(
    prefill_tokens_per_second=1000.0,
    decode_step_seconds=0.01,
    decode_seconds_per_sequence=0.001,
    blocks=60,
)


class PaceAfterConsumers(VirtualStepTimer):
    """Who waits for the outputs of a step sees them at its end, not at the end of the next."""

    async def sleep_until(self, when: float) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await super().sleep_until(when)


async def ends(requests: Sequence[TracedRequest], engine: EngineConfig) -> list[float]:
    """When each of these, which come at once, ends on a SimEngine."""
    pace = PaceAfterConsumers()
    spec = EngineSpec(
        worker_id=WorkerId("w"),
        epoch=1,
        role=WorkerRole.AGGREGATED,
        model_dir=None,
        model_name="m",
        model_identity="rev",
        engine=engine,
        kv_cache=KvCacheConfig(),
        transfer=TransferConfig(),
    )
    real = SimEngine(spec, LocalFabric(pace).open, pace)
    await real.start()
    rng = random.Random(2)
    for number, request in enumerate(requests):
        prompt = [rng.randrange(30_000) for _ in range(request.prompt_tokens)]
        limits = SamplingLimits(request.output_tokens)
        await real.add(EngineRequest(RequestId(str(number)), prompt, limits))
    ended: dict[str, float] = {}
    try:
        while len(ended) < len(requests):
            for output in await real.next_outputs():
                if output.finish_reason is not None:
                    ended[output.request_id] = pace.now()
    finally:
        await real.aclose()
    return [ended[str(number)] for number in range(len(requests))]


@pytest.mark.parametrize("concurrency", [4, 64], ids=["few-slots", "few-blocks"])
@pytest.mark.parametrize("batch_tokens", [64, 2048], ids=["small-steps", "large-steps"])
def test_every_request_ends_when_it_does_on_the_sim_engine(
    make_shape: MakeShape, concurrency: int, batch_tokens: int
) -> None:
    """With chunks, preemption and steps that pass as one."""
    mix = RequestMix([(RequestKind(100, 60), 1)], [(TracedRequest(0.0, 1, 1).tenant, 1)], 30.0, 1.0)
    requests = [replace(r, arrived_at=0.0) for r in mix.requests(random.Random(4))]
    section = {"max_decode_concurrency": concurrency, "max_batched_tokens": batch_tokens}
    engine = EngineConfig.model_validate({"kind": "sim", "sim": SIM, **section})
    shape = make_shape(
        deployment={"disaggregated": False},
        sim=SIM.model_dump(),
        engine=section,
        budgets={"max_requests_in_flight": 1000},
        scheduling={"srpt_bias": 0.0},
    )
    wide = replace(shape.limits, batch=replace(shape.batch, max_concurrency=1000))
    simulation = Simulation(replace(shape, limits=wide), requests)
    simulation.run()
    expected = asyncio.run(ends(requests, engine))
    got = simulation.report(Goals())
    assert bool(got.workers[0].preemptions) == (concurrency == 64)
    assert got.seconds == pytest.approx(max(expected))
    assert got.total.mean == pytest.approx(sum(expected) / len(expected))
