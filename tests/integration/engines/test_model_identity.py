"""Two simulated engines whose models have different contents: no KV goes from one to the other."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from llmserve.config.schema import EngineConfig, KvCacheConfig, SimSpec, TransferConfig
from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.request import EngineOutput, EngineRequest, SamplingLimits, WorkerRole
from llmserve.engines.sim.engine import SimEngine
from llmserve.engines.sim.link import open_handover_link
from llmserve.engines.sim.step import RealStepTimer
from llmserve.engines.spec import EngineSpec

PROMPT = list(range(100, 164))


class Engines:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self, role: WorkerRole, identity: str) -> SimEngine:
        spec = EngineSpec(
            worker_id=WorkerId(role.value),
            epoch=1,
            role=role,
            model_dir=None,
            model_name="sim",
            model_identity=identity,
            engine=EngineConfig(kind="sim", sim=SimSpec(block_size_tokens=16)),
            kv_cache=KvCacheConfig(),
            transfer=TransferConfig(engine_order=()),
        )
        engine = SimEngine(spec, open_handover_link, RealStepTimer())
        self._stack.push_async_callback(engine.aclose)
        await engine.start()
        return engine


@pytest.fixture
async def engines() -> AsyncIterator[Engines]:
    async with AsyncExitStack() as stack:
        yield Engines(stack)


async def first_output(engine: SimEngine, kv: dict[str, object]) -> EngineOutput:
    """Of the prompt, of which one token is wanted."""
    await engine.add(
        EngineRequest(RequestId("r"), PROMPT, SamplingLimits(1), cache_salt="s", kv_transfer_params=kv)
    )
    while not (outputs := await engine.next_outputs()):
        pass  # the engine has come to rest
    return outputs[0]


@pytest.mark.parametrize(("identity", "loaded"), [("model", len(PROMPT)), ("edited", 0)])
async def test_kv_is_loaded_only_from_the_same_model(engines: Engines, identity: str, loaded: int) -> None:
    prefill = await engines.start(WorkerRole.PREFILL, "model")
    decode = await engines.start(WorkerRole.DECODE, identity)
    ticket = (await first_output(prefill, {"do_remote_decode": True})).kv_transfer_params
    assert ticket is not None
    output = await first_output(decode, dict(ticket))
    assert output.prefill_stats is not None
    assert output.handover is not None
    assert output.prefill_stats.external_cached_tokens == loaded
    assert ("model differs: 'edited' there, 'model' here" in output.handover.reason) == (loaded == 0)
