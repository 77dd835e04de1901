"""A slow stream gets fewer, larger messages, and loses nothing."""

import asyncio
from typing import Any

from llmserve.core.adapters import AdapterLoad, AdapterTier
from llmserve.core.ids import RequestId
from llmserve.core.request import (
    Acceptance,
    EngineOutput,
    FinishReason,
    HandoverReport,
    Logprobs,
    PrefillStats,
)
from llmserve.workers.sessions import DeltaOutbox


def output(name: str, *tokens: int, **more: Any) -> EngineOutput:
    return EngineOutput(RequestId(name), token_ids=tokens, **more)


def logprobs(width: int, fill: bytes) -> Logprobs:
    return Logprobs(width, fill * 4 * width, fill * 4 * width, fill * 4)


async def test_what_is_pending_merges_to_one_delta_a_request() -> None:
    outbox = DeltaOutbox()
    report, load = HandoverReport("tcp", 640, 0.5, (), ""), AdapterLoad(AdapterTier.DISK, 0.5)
    outbox.put(output("a", 1, prefill_stats=PrefillStats(7), handover=report, adapter_load=load))
    outbox.put(output("b", 9))
    outbox.put(output("a", 2))
    accepted = Acceptance(2, 6, 4)
    outbox.put(
        output(
            "a",
            3,
            finish_reason=FinishReason.STOP,
            stop_reason=3,
            kv_transfer_params={"x": 1},
            acceptance=accepted,
        )
    )
    merged, other = await outbox.take()
    assert merged == output(
        "a",
        1,
        2,
        3,
        finish_reason=FinishReason.STOP,
        stop_reason=3,
        kv_transfer_params={"x": 1},
        prefill_stats=PrefillStats(7),
        handover=report,
        adapter_load=load,
        acceptance=accepted,
    )
    assert other == output("b", 9)


async def test_logprobs_of_one_width_join_row_by_row() -> None:
    outbox = DeltaOutbox()
    outbox.put(output("a", 1, logprobs=logprobs(2, b"1"), prompt_logprobs=logprobs(3, b"p")))
    outbox.put(output("a", 2, logprobs=logprobs(2, b"2")))
    (merged,) = await outbox.take()
    assert merged.logprobs == Logprobs(2, b"1" * 8 + b"2" * 8, b"1" * 8 + b"2" * 8, b"1" * 4 + b"2" * 4)
    assert merged.prompt_logprobs == logprobs(3, b"p")


async def test_logprobs_of_two_widths_stay_apart_and_in_order() -> None:
    outbox = DeltaOutbox()
    outbox.put(output("a", 1, logprobs=logprobs(2, b"1")))
    outbox.put(output("a", 2))
    outbox.put(output("a", 3))
    assert [list(part.token_ids) for part in await outbox.take()] == [[1], [2, 3]]


async def test_nothing_merges_into_a_finished_request() -> None:
    outbox = DeltaOutbox()
    outbox.put(output("a", 1, finish_reason=FinishReason.LENGTH))
    outbox.put(output("a", 2))
    assert len(await outbox.take()) == 2


async def test_take_waits_and_close_wakes_it() -> None:
    outbox = DeltaOutbox()
    taker = asyncio.ensure_future(outbox.take())
    await asyncio.sleep(0)
    assert not taker.done()
    outbox.put(output("a", 1))
    outbox.close()
    assert len(await taker) == 1
    assert await outbox.take() == []


async def test_a_dropped_request_is_not_sent() -> None:
    outbox = DeltaOutbox()
    outbox.put(output("a", 1))
    outbox.put(output("b", 2))
    assert outbox.drop(RequestId("a")) == [output("a", 1)]
    assert await outbox.take() == [output("b", 2)]
