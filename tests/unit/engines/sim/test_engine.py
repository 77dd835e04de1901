"""The shell around the scheduler, in virtual time. What every engine promises is in
tests/conformance/test_engine.py."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from msgspec import msgpack

from llmserve.core.errors import EngineDead, InvalidRequest
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, EngineRequest, FinishReason, LeaseState, PrefillStats
from llmserve.engines.sim.engine import SimEngine
from tests.unit.engines.sim.local_fabric import VirtualStepTimer

Start = Callable[..., Awaitable[SimEngine]]
RequestOf = Callable[..., EngineRequest]
UntilDone = Callable[..., Awaitable[dict[str, list[EngineOutput]]]]

HAND_OVER = {"do_remote_decode": True}
PROMPT = list(range(100, 140))


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def settled(engine: SimEngine) -> int:
    """Used blocks, once what others were told has arrived."""
    for _ in range(20):
        await asyncio.sleep(0)
    return (await engine.load()).used_blocks


async def test_time_is_what_the_model_says(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone, pace: VirtualStepTimer
) -> None:
    engine = await start_engine(
        prefill_tokens_per_second=100.0, decode_step_seconds=0.5, decode_seconds_per_sequence=0.25
    )
    await engine.add(request_of("a", PROMPT, max_tokens=3))
    await until_done(engine, "a")
    assert pace.now() == pytest.approx(0.4 + 2 * 0.75)


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "message"),
    [(90, 11, "the model's limit of 100"), (60, 38, "can never fit"), (0, 1, "needs a prompt")],
)
async def test_what_can_never_be_served_is_refused(
    start_engine: Start, request_of: RequestOf, prompt_tokens: int, max_tokens: int, message: str
) -> None:
    engine = await start_engine(engine={"max_model_len": 100}, blocks=6)
    with pytest.raises(InvalidRequest, match=message):
        await engine.add(request_of("a", list(range(prompt_tokens)), max_tokens))
    await engine.add(request_of("a", list(range(60)), 37))


async def test_logprobs_are_refused(start_engine: Start, request_of: RequestOf) -> None:
    engine = await start_engine()
    for asked in ({"logprobs": 0}, {"prompt_logprobs": 1}):
        with pytest.raises(InvalidRequest, match="a simulated engine computes no logprobs"):
            await engine.add(replace(request_of("a", PROMPT), sampling_params=msgpack.encode(asked)))
    stops = msgpack.encode({"stop": ["logprobs"]})
    await engine.add(replace(request_of("a", PROMPT), sampling_params=stops))


async def test_an_id_in_use_is_refused(start_engine: Start, request_of: RequestOf) -> None:
    engine = await start_engine()
    await engine.add(request_of("a", PROMPT))
    with pytest.raises(InvalidRequest, match="in use"):
        await engine.add(request_of("a", PROMPT))


async def test_stop_tokens_wait_for_the_minimum(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone
) -> None:
    engine = await start_engine(vocab_size=16)
    everything = frozenset(range(16))
    await engine.add(request_of("a", PROMPT, 9, stop_token_ids=everything - {3}, min_tokens=5))
    outputs = (await until_done(engine, "a"))["a"]
    assert tokens(outputs)[:5] == [3] * 5
    if outputs[-1].finish_reason is FinishReason.STOP:
        assert outputs[-1].stop_reason == tokens(outputs)[-1] != 3


async def test_a_hand_over_moves_true_bytes_once(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone
) -> None:
    prefill, decode = await start_engine("p"), await start_engine("d")
    await prefill.add(request_of("a", PROMPT, 1, HAND_OVER))
    (first,) = (await until_done(prefill, "a"))["a"]
    assert first.kv_transfer_params is not None
    assert (await prefill.load()).leased_blocks == 3
    await decode.add(request_of("a", PROMPT, 5, dict(first.kv_transfer_params)))
    outputs = (await until_done(decode, "a"))["a"]
    assert outputs[0].prefill_stats is not None
    assert outputs[0].prefill_stats.external_cached_tokens == len(PROMPT)
    assert tokens(outputs)[0] == first.token_ids[0]
    assert await settled(prefill) == 0
    load = await decode.load()
    assert (load.transferred_bytes, load.last_transport) == (8 * len(PROMPT), "local")


async def test_a_grant_is_reported(start_engine: Start, request_of: RequestOf, until_done: UntilDone) -> None:
    prefill = await start_engine("p")
    await prefill.add(request_of("a", PROMPT, 1, HAND_OVER))
    await until_done(prefill, "a")
    events = await prefill.next_kv_events()
    (lease,) = events.leases
    assert (lease.state, lease.blocks) == (LeaseState.GRANTED, 3)
    assert len(events.stored) == 2


@pytest.mark.parametrize("on_failure", ["recompute", "fail"])
async def test_wrong_bytes_are_noticed(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone, on_failure: str
) -> None:
    """Two requests of one prefill, their tickets swapped: every check of the lease passes."""
    prefill, decode = await start_engine("p"), await start_engine("d", on_failure=on_failure)
    other = [token + 1 for token in PROMPT]
    await prefill.add(request_of("a", PROMPT, 1, HAND_OVER))
    await prefill.add(request_of("b", other, 1, HAND_OVER))
    done = await until_done(prefill, "a", "b")
    await decode.add(request_of("a", PROMPT, 3, _ticket(done["b"])))
    outputs = (await until_done(decode, "a"))["a"]
    if on_failure == "fail":
        assert outputs[-1].finish_reason is FinishReason.ERROR
        assert "not those of the prompt" in outputs[-1].error
    else:
        assert tokens(outputs)[0] == tokens(done["a"])[0]
        assert outputs[0].prefill_stats is not None
        assert outputs[0].prefill_stats.external_cached_tokens == 0
    assert await settled(decode) == 0


async def test_a_ticket_of_an_engine_that_is_gone_is_recomputed(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone
) -> None:
    prefill, decode = await start_engine("p"), await start_engine("d")
    await prefill.add(request_of("a", PROMPT, 1, HAND_OVER))
    ticket = _ticket((await until_done(prefill, "a"))["a"])
    await prefill.aclose()
    await decode.add(request_of("a", PROMPT, 3, ticket))
    await until_done(decode, "a")
    assert (await decode.load()).transfer_failures == 1


async def test_a_lease_that_expires_frees_its_blocks(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone, pace: VirtualStepTimer
) -> None:
    prefill = await start_engine("p")
    await prefill.add(request_of("a", PROMPT, 1, HAND_OVER))
    await until_done(prefill, "a")
    assert (await prefill.load()).used_blocks == 3
    await pace.sleep_until(pace.now() + 31)
    await prefill.load()
    load = await prefill.load()
    assert (load.used_blocks, load.leased_blocks, load.orphan_blocks) == (0, 0, 0)


async def test_a_request_whose_ticket_is_no_ticket_is_refused(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone
) -> None:
    decode = await start_engine("d")
    with pytest.raises(InvalidRequest, match="worker_id"):
        await decode.add(request_of("a", PROMPT, 3, {"do_remote_prefill": True}))


async def test_blocks_in_another_order_are_noticed(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone
) -> None:
    prefill, decode = await start_engine("p"), await start_engine("d", on_failure="fail")
    await prefill.add(request_of("a", PROMPT, 1, HAND_OVER))
    ticket = _ticket((await until_done(prefill, "a"))["a"])
    ticket |= {"blocks": {"block_ids": ticket["blocks"]["block_ids"][::-1]}}
    await decode.add(request_of("a", PROMPT, 3, ticket))
    assert "not those of the prompt" in (await until_done(decode, "a"))["a"][-1].error


@pytest.mark.parametrize(("there", "here"), [(16, 24), (24, 16), (8, 64), (64, 8)])
async def test_blocks_of_another_size_are_handed_over(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone, there: int, here: int
) -> None:
    prefill = await start_engine("p", block_size_tokens=there)
    decode = await start_engine("d", block_size_tokens=here, on_failure="fail")
    await decode.add(request_of("part", PROMPT[:30], 1))
    await until_done(decode, "part")
    await prefill.add(request_of("a", PROMPT, 1, HAND_OVER))
    first = (await until_done(prefill, "a"))["a"]
    await decode.add(request_of("a", PROMPT, 3, _ticket(first)))
    outputs = (await until_done(decode, "a"))["a"]
    assert tokens(outputs)[0] == tokens(first)[0]
    cached = 30 // here * here
    assert outputs[0].prefill_stats == PrefillStats(len(PROMPT), cached, len(PROMPT) - cached)
    assert await settled(prefill) == 0


async def test_a_bug_in_the_loop_is_the_engines_death(
    start_engine: Start, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    monkeypatch.setattr(engine._scheduler, "plan", lambda: 1 / 0)
    await engine.add(request_of("a", PROMPT))
    with pytest.raises(EngineDead):
        await engine.next_outputs()
    with pytest.raises(EngineDead):
        await engine.add(replace(request_of("b", PROMPT), request_id=RequestId("b")))


def _ticket(outputs: list[EngineOutput]) -> dict[str, Any]:
    params = outputs[-1].kv_transfer_params
    assert params is not None
    return dict(params)
