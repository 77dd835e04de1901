"""Adapters of the simulated engine, in virtual time. What every engine promises is in
tests/conformance/test_engine.py."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from llmserve.core.adapters import BASE_MODEL, AdapterTier
from llmserve.core.errors import AdapterUnavailable, InvalidRequest, LLMServeError
from llmserve.core.ids import AdapterDigest, RequestId, TransferId, WorkerId
from llmserve.core.kv_params import PushParams, prefill_params
from llmserve.core.request import EngineOutput, EngineRequest
from llmserve.core.tasks import TaskOwner
from llmserve.engines.sim.engine import SimEngine
from llmserve.metrics.worker import AdapterMetrics
from llmserve.workers.adapters.build import build_adapters
from tests.support.adapter_pool import FakeStore
from tests.unit.engines.sim.local_fabric import VirtualStepTimer

Start = Callable[..., Awaitable[SimEngine]]
RequestOf = Callable[..., EngineRequest]
UntilDone = Callable[..., Awaitable[dict[str, list[EngineOutput]]]]

RED, BLUE, GREEN = (AdapterDigest(digit * 64) for digit in "abc")
PROMPT = list(range(100, 140))


async def test_loading_takes_its_time_and_requests_are_refused_until_then(
    start_engine: Start, request_of: RequestOf, pace: VirtualStepTimer, tmp_path: Path
) -> None:
    engine = await start_engine(slots=1, adapter_load_seconds=2.0)
    loading = asyncio.create_task(engine.load_adapter(RED, tmp_path))
    await asyncio.sleep(0)
    with pytest.raises(AdapterUnavailable, match="not loaded"):
        await engine.add(replace(request_of("a", PROMPT), adapter=RED))
    await loading
    assert pace.now() == pytest.approx(2.0)
    await engine.add(replace(request_of("a", PROMPT), adapter=RED))


async def test_there_are_as_many_as_slots(start_engine: Start, tmp_path: Path) -> None:
    engine = await start_engine(slots=2)
    await asyncio.gather(*(engine.load_adapter(digest, tmp_path) for digest in (RED, BLUE, RED)))
    with pytest.raises(InvalidRequest, match="all 2 slots are taken"):
        await engine.load_adapter(GREEN, tmp_path)
    await engine.unload_adapter(RED)
    await engine.unload_adapter(RED)
    await engine.load_adapter(GREEN, tmp_path)


async def test_without_files_nothing_is_loaded(start_engine: Start, tmp_path: Path) -> None:
    engine = await start_engine(slots=1)
    with pytest.raises(InvalidRequest, match="nowhere is not a directory"):
        await engine.load_adapter(RED, tmp_path / "nowhere")
    await engine.load_adapter(BLUE, tmp_path)


async def test_each_has_its_own_tokens_and_cache_until_it_is_forgotten(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone, tmp_path: Path
) -> None:
    engine = await start_engine(slots=2)
    for digest in (RED, BLUE):
        await engine.load_adapter(digest, tmp_path)

    async def run(name: str, digest: AdapterDigest) -> tuple[list[int], int]:
        outputs = await answer(engine, replace(request_of(name, PROMPT), adapter=digest), until_done)
        assert outputs[0].prefill_stats is not None
        return tokens(outputs), outputs[0].prefill_stats.local_cached_tokens

    first = [await run(f"{digest}-1", digest) for digest in (BASE_MODEL, RED, BLUE)]
    again = [await run(f"{digest}-2", digest) for digest in (BASE_MODEL, RED, BLUE)]
    assert [cached for _, cached in first] == [0, 0, 0]
    assert [cached for _, cached in again] == [32, 32, 32]
    assert [said for said, _ in first] == [said for said, _ in again]
    assert len({tuple(said) for said, _ in first}) == 3

    await engine.unload_adapter(RED)
    await engine.unload_adapter(RED, forget_blocks=True)
    removed = (await engine.next_kv_events()).removed
    await engine.load_adapter(RED, tmp_path)
    assert [(await run(f"{digest}-3", digest))[1] for digest in (BASE_MODEL, RED, BLUE)] == [32, 0, 32]
    assert len(removed) == 2, "two blocks of the prompt"


@pytest.fixture
async def pair(start_engine: Start, tmp_path: Path) -> tuple[SimEngine, SimEngine]:
    """A prefill and a decode engine that have loaded both adapters."""
    engines = await start_engine("p", slots=2), await start_engine("d", slots=2)
    for engine in engines:
        for digest in (RED, BLUE):
            await engine.load_adapter(digest, tmp_path)
    return engines


async def answer(engine: SimEngine, request: EngineRequest, until_done: UntilDone) -> list[EngineOutput]:
    await engine.add(request)
    return (await until_done(engine, request.request_id))[request.request_id]


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def test_kv_is_pulled_within_a_version_only(
    pair: tuple[SimEngine, SimEngine], request_of: RequestOf, until_done: UntilDone
) -> None:
    prefill, decode = pair
    alone = await answer(prefill, replace(request_of("alone", PROMPT, 5), adapter=RED), until_done)
    legs = replace(request_of("a", PROMPT, 1, {"do_remote_decode": True}), adapter=RED)
    (first,) = await answer(prefill, legs, until_done)
    second = request_of("a", PROMPT, 5, dict(first.kv_transfer_params or {}))
    for other in (BASE_MODEL, BLUE):
        with pytest.raises(AdapterUnavailable, match="its KV was computed with"):
            await decode.add(replace(second, adapter=other))
    outputs = await answer(decode, replace(second, adapter=RED), until_done)
    assert tokens(outputs) == tokens(alone)
    assert outputs[0].prefill_stats is not None
    assert outputs[0].prefill_stats.external_cached_tokens == len(PROMPT)


@pytest.mark.parametrize("on_failure", ["recompute", "fail"])
async def test_a_leg_that_waits_for_its_adapter_longer_than_prefill_keeps_the_kv(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone, tmp_path: Path, on_failure: str
) -> None:
    """Loading takes 40 s, and a lease ends after 30 s. As with any KV that is gone, `on_failure` decides."""
    prefill = await start_engine("p", slots=1)
    decode = await start_engine("d", slots=1, on_failure=on_failure, adapter_load_seconds=40.0)
    await prefill.load_adapter(RED, tmp_path)
    alone = await answer(prefill, replace(request_of("alone", PROMPT, 5), adapter=RED), until_done)
    leg = replace(request_of("a", PROMPT, 1, {"do_remote_decode": True}), adapter=RED)
    (first,) = await answer(prefill, leg, until_done)
    leg = replace(request_of("a", PROMPT, 5, dict(first.kv_transfer_params or {})), adapter=RED)
    outputs = await _after_loading(decode, leg, FakeStore(tmp_path), until_done)
    assert (await prefill.load()).leased_blocks == 0
    if on_failure == "fail":
        assert outputs[-1].error == "loading KV failed: the lease has ended"
        return
    assert tokens(outputs) == tokens(alone)
    assert outputs[0].prefill_stats is not None
    assert outputs[0].prefill_stats.external_cached_tokens == 0


async def _after_loading(
    engine: SimEngine, leg: EngineRequest, store: FakeStore, until_done: UntilDone
) -> list[EngineOutput]:
    """Runs a leg as its worker does: the engine gets it when its adapter is loaded."""
    tasks, metrics, errors = TaskOwner("worker"), AdapterMetrics(CollectorRegistry()), list[LLMServeError]()
    adapters = build_adapters(engine, 1, store, tasks, metrics, lambda: None)
    adapters.pool.serve(leg.adapter, f"dir:/{leg.adapter}", AdapterTier.SOURCE)
    try:
        await adapters.legs.add(leg, errors.append)
        outputs = (await until_done(engine, leg.request_id))[leg.request_id]
        assert errors == []
        return outputs
    finally:
        adapters.pool.close()
        await tasks.aclose()
        await adapters.files.aclose()


async def test_a_push_meets_only_a_leg_of_the_same_version(
    pair: tuple[SimEngine, SimEngine], request_of: RequestOf, until_done: UntilDone
) -> None:
    prefill, decode = pair
    alone = await answer(prefill, replace(request_of("alone", PROMPT, 5), adapter=RED), until_done)
    card = PushParams(TransferId("t"), WorkerId("p"), 1, ("p:1",), len(PROMPT), continues=True).to_params()
    await decode.add(replace(request_of("wrong", PROMPT, 4, card), adapter=BLUE))
    await decode.add(replace(request_of("right", PROMPT, 4, card), adapter=RED))
    pushed = replace(request_of("a", PROMPT, 1, prefill_params(TransferId("t"))), adapter=RED)
    drawn = await answer(prefill, pushed, until_done)
    outputs = await until_done(decode, "right")
    assert tokens(drawn) + tokens(outputs["right"]) == tokens(alone)
    assert "wrong" not in outputs
    await decode.abort([RequestId("wrong")])
