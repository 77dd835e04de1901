"""The spans of a worker's legs, however they end."""

from dataclasses import replace

import pytest

from llmserve.core.adapters import AdapterLoad, AdapterTier
from llmserve.core.errors import EngineDead
from llmserve.core.ids import AdapterDigest, RequestId, TenantId
from llmserve.core.request import (
    EngineOutput,
    EngineRequest,
    FinishReason,
    HandoverReport,
    PrefillStats,
    SamplingLimits,
    WorkerRole,
)
from llmserve.tracing.base import NO_SPAN
from llmserve.workers.leg_spans import LegSpans
from tests.support.spans import ROOT, KeptSpan, KeptSpans

R = RequestId("r")


@pytest.fixture
def kept() -> KeptSpans:
    return KeptSpans()


@pytest.fixture
def legs(kept: KeptSpans) -> LegSpans:
    """With one that has begun."""
    made = LegSpans(kept, WorkerRole.DECODE, "decode-0", "tiny")
    made.began(request(ROOT))
    return made


def request(traceparent: str) -> EngineRequest:
    return EngineRequest(R, [1, 2, 3], SamplingLimits(8), tenant=TenantId("red"), traceparent=traceparent)


def finish(kept: KeptSpans) -> tuple[KeptSpan, list[str]]:
    span = kept.only("decode")
    assert span.ended
    return span, list(span.attributes["gen_ai.response.finish_reasons"])


def test_a_leg_is_a_span_below_who_asked(legs: LegSpans, kept: KeptSpans) -> None:
    legs.outputs([EngineOutput(R, prefill_stats=PrefillStats(3, 1, 1))])
    legs.outputs([EngineOutput(R, [7, 8])])
    legs.outputs([EngineOutput(R, [9], FinishReason.STOP)])
    span, reasons = finish(kept)
    assert (span.parent, span.error, reasons, span.events) == (ROOT, "", ["stop"], ["first token"])
    assert span.attributes == {
        "llmserve.worker": "decode-0",
        "gen_ai.request.model": "tiny",
        "llmserve.request_id": "r",
        "llmserve.tenant": "red",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "llmserve.cached_tokens.device": 1,
        "llmserve.cached_tokens.store": 1,
        "gen_ai.response.finish_reasons": ("stop",),
    }


def test_a_leg_says_how_its_adapter_came(kept: KeptSpans) -> None:
    legs = LegSpans(kept, WorkerRole.DECODE, "decode-0", "tiny")
    legs.began(replace(request(ROOT), adapter=AdapterDigest("cafe")))
    legs.outputs([EngineOutput(R, [7], adapter_load=AdapterLoad(AdapterTier.DISK, 0.5))])
    legs.outputs([EngineOutput(R, [9], FinishReason.STOP)])
    attributes = finish(kept)[0].attributes
    assert attributes["llmserve.adapter"] == "cafe"
    assert attributes["llmserve.adapter.tier"] == "disk"
    assert attributes["llmserve.adapter.seconds"] == 0.5


def test_what_brought_the_kv_is_a_span_of_its_own(legs: LegSpans, kept: KeptSpans) -> None:
    report = HandoverReport("tcp", 640, 0.5, ("ucx: away",), ended_unix=9.0)
    legs.outputs([EngineOutput(R, [7], handover=report)])
    leg, transfer = kept.spans
    assert (transfer.name, transfer.parent) == ("transfer", leg.traceparent)
    assert (transfer.began, transfer.ended_at, transfer.error) == (8.5, 9.0, "")
    assert transfer.attributes["llmserve.transfer.transport"] == "tcp"
    assert transfer.attributes["llmserve.transfer.mode"] == "pull"
    assert transfer.attributes["llmserve.transfer.bytes"] == 640
    assert transfer.events == ["fallback"]


def test_a_push_is_named_so(legs: LegSpans, kept: KeptSpans) -> None:
    legs.outputs([EngineOutput(R, [7], handover=HandoverReport("shm", 64, 0.1, pushed=True))])
    assert kept.only("transfer").attributes["llmserve.transfer.mode"] == "push"


def test_kv_that_did_not_come_fails_the_transfer_alone(legs: LegSpans, kept: KeptSpans) -> None:
    report = HandoverReport("", 0, 0.1, (), "lease ended")
    legs.outputs([EngineOutput(R, [7], FinishReason.LENGTH, handover=report)])
    assert kept.only("transfer").error == "lease ended"
    assert finish(kept)[0].error == ""


def test_an_engine_that_fails_it(legs: LegSpans, kept: KeptSpans) -> None:
    legs.outputs([EngineOutput(R, (), FinishReason.ERROR, error="TransferError: away")])
    span, reasons = finish(kept)
    assert (span.error, reasons) == ("TransferError: away", ["error"])


def test_an_engine_that_dies(legs: LegSpans, kept: KeptSpans) -> None:
    legs.failed(R, EngineDead("the vLLM engine is dead"))
    assert isinstance(finish(kept)[0].error, EngineDead)


def test_an_abort_is_no_error(legs: LegSpans, kept: KeptSpans) -> None:
    legs.aborted([R, RequestId("unknown")], "the apiserver is gone")
    span, reasons = finish(kept)
    assert (span.error, reasons) == ("", ["abort"])
    assert span.attributes["llmserve.reason"] == "the apiserver is gone"
    legs.outputs([EngineOutput(R, [7], FinishReason.LENGTH)])
    assert "first token" not in span.events, "it is over"


def test_what_is_not_traced_leaves_nothing() -> None:
    kept = KeptSpans(recording=False)
    legs = LegSpans(kept, WorkerRole.PREFILL, "prefill-0", "tiny")
    legs.began(request(""))
    assert kept.spans == []
    legs.began(request(ROOT))  # of a trace that is not sampled
    legs.outputs([EngineOutput(R, [7], FinishReason.LENGTH)])
    assert not kept.only("prefill").ended


def test_a_lease_that_is_given_back(legs: LegSpans, kept: KeptSpans) -> None:
    legs.release(ROOT).end(attributes={"llmserve.lease.released": True})
    assert kept.only("release").parent == ROOT
    assert legs.release("") is NO_SPAN
