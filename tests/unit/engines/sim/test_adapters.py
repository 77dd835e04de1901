"""Adapters of the simulated engine, in virtual time. What every engine promises is in
tests/conformance/test_engine.py."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import AdapterUnavailable, InvalidRequest
from llmserve.core.ids import AdapterDigest
from llmserve.core.request import EngineOutput, EngineRequest
from llmserve.engines.sim.engine import SimEngine
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
        await engine.add(replace(request_of(name, PROMPT), adapter=digest))
        outputs = (await until_done(engine, name))[name]
        assert outputs[0].prefill_stats is not None
        tokens = [token for output in outputs for token in output.token_ids]
        return tokens, outputs[0].prefill_stats.local_cached_tokens

    first = [await run(f"{digest}-1", digest) for digest in (BASE_MODEL, RED, BLUE)]
    again = [await run(f"{digest}-2", digest) for digest in (BASE_MODEL, RED, BLUE)]
    assert [cached for _, cached in first] == [0, 0, 0]
    assert [cached for _, cached in again] == [32, 32, 32]
    assert [tokens for tokens, _ in first] == [tokens for tokens, _ in again]
    assert len({tuple(tokens) for tokens, _ in first}) == 3

    await engine.unload_adapter(RED)
    await engine.unload_adapter(RED, forget_blocks=True)
    removed = (await engine.next_kv_events()).removed
    await engine.load_adapter(RED, tmp_path)
    assert [(await run(f"{digest}-3", digest))[1] for digest in (BASE_MODEL, RED, BLUE)] == [32, 0, 32]
    assert len(removed) == 2, "two blocks of the prompt"


@pytest.mark.parametrize("decode_adapter", [BASE_MODEL, RED, BLUE])
async def test_kv_is_handed_over_within_a_version_only(
    start_engine: Start,
    request_of: RequestOf,
    until_done: UntilDone,
    tmp_path: Path,
    decode_adapter: AdapterDigest,
) -> None:
    prefill, decode = await start_engine("p", slots=2), await start_engine("d", slots=2)
    for engine in (prefill, decode):
        for digest in (RED, BLUE):
            await engine.load_adapter(digest, tmp_path)
    await prefill.add(replace(request_of("alone", PROMPT, 5), adapter=RED))
    alone = [token for output in (await until_done(prefill, "alone"))["alone"] for token in output.token_ids]
    await prefill.add(replace(request_of("a", PROMPT, 1, {"do_remote_decode": True}), adapter=RED))
    (first,) = (await until_done(prefill, "a"))["a"]
    second = replace(request_of("a", PROMPT, 5, dict(first.kv_transfer_params or {})), adapter=decode_adapter)
    if decode_adapter != RED:
        with pytest.raises(AdapterUnavailable, match="its KV was computed with"):
            await decode.add(second)
        return
    await decode.add(second)
    outputs = (await until_done(decode, "a"))["a"]
    assert [token for output in outputs for token in output.token_ids] == alone
    assert outputs[0].prefill_stats is not None
    assert outputs[0].prefill_stats.external_cached_tokens == len(PROMPT)
