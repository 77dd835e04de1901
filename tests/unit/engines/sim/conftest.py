"""A simulated engine's parts in virtual time."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from llmserve.config.schema import EngineConfig, KvCacheConfig, SimSpec, Speculation, TransferConfig
from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.request import EngineOutput, EngineRequest, SamplingLimits, WorkerRole
from llmserve.engines.sim.engine import SimEngine
from llmserve.engines.spec import EngineSpec
from tests.unit.engines.sim.local_fabric import LocalFabric, VirtualStepTimer

MakeSpec = Callable[..., EngineSpec]
StartEngine = Callable[..., Awaitable[SimEngine]]


@pytest.fixture
def make_spec() -> MakeSpec:
    def make(
        name: str = "w",
        *,
        engine: dict[str, Any] | None = None,
        slots: int = 0,
        role: WorkerRole = WorkerRole.AGGREGATED,
        proposed_tokens: int = 0,
        adaptive: bool = False,
        **sim: Any,
    ) -> EngineSpec:
        transfer = TransferConfig(on_failure=sim.pop("on_failure", "recompute"))
        return EngineSpec(
            worker_id=WorkerId(name),
            epoch=1,
            role=role,
            model_dir=None,
            model_name="sim",
            model_identity="rev",
            engine=EngineConfig(kind="sim", sim=SimSpec(**sim), **(engine or {})),
            kv_cache=KvCacheConfig(),
            transfer=transfer,
            lora=LoraShape(slots, 16) if slots else NO_ADAPTERS,
            speculation=Speculation(method="ngram", tokens=proposed_tokens, adaptive=adaptive)
            if proposed_tokens
            else None,
        )

    return make


@pytest.fixture
def pace() -> VirtualStepTimer:
    return VirtualStepTimer()


@pytest.fixture
async def start_engine(make_spec: MakeSpec, pace: VirtualStepTimer) -> AsyncIterator[StartEngine]:
    fabric = LocalFabric(pace)
    started: list[SimEngine] = []

    async def start(name: str = "w", **settings: Any) -> SimEngine:
        engine = SimEngine(make_spec(name, **settings), fabric.open, pace)
        started.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in started:
        await engine.aclose()


@pytest.fixture
def request_of() -> Callable[..., EngineRequest]:
    def make(
        name: str, prompt: Sequence[int], max_tokens: int = 4, kv: dict[str, Any] | None = None, **limits: Any
    ) -> EngineRequest:
        return EngineRequest(
            RequestId(name),
            prompt,
            SamplingLimits(max_tokens, **limits),
            cache_salt="s",
            kv_transfer_params=kv,
        )

    return make


@pytest.fixture
def until_done() -> Callable[..., Awaitable[dict[str, list[EngineOutput]]]]:
    async def collect(engine: SimEngine, *names: str) -> dict[str, list[EngineOutput]]:
        got: dict[str, list[EngineOutput]] = {name: [] for name in names}
        open_requests = set(names)
        while open_requests:
            for output in await engine.next_outputs():
                got.setdefault(output.request_id, []).append(output)
                if output.finish_reason is not None:
                    open_requests.discard(output.request_id)
        return got

    return collect
