"""What goes over the wire comes back as it was."""

from dataclasses import replace
from typing import Any

import pytest

from llmserve.core.adapters import AdapterLoad, AdapterTier
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import AdapterDigest, RequestId, TenantId
from llmserve.core.request import (
    Acceptance,
    EngineLoad,
    EngineOutput,
    EngineRequest,
    FinishReason,
    Logprobs,
    Outcome,
    PooledOutput,
    PrefillStats,
    SamplingLimits,
    WorkerRole,
)
from llmserve.core.stats import BatchGain, SpeculationReport
from llmserve.rpc import codec

REQUEST = EngineRequest(
    request_id=RequestId("r"),
    prompt_token_ids=[1, 2, 70_000],
    limits=SamplingLimits(5, 2, frozenset({0, 2})),
    sampling_params=b"\x81",
    cache_salt="ab",
    tenant=TenantId("red"),
    adapter=AdapterDigest("a"),
    priority=-3,
    kv_transfer_params={"do_remote_decode": True},
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)


def test_request_round_trip() -> None:
    assert codec.decode_request(codec.encode_request(REQUEST).generate) == REQUEST


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", ""),
        ("prompt_token_ids", []),
        ("kv_transfer_params", b"[1]"),
        ("kv_transfer_params", b"{"),
    ],
)
def test_a_bad_request_is_refused(field: str, value: Any) -> None:
    message = codec.encode_request(REQUEST).generate
    message.ClearField(field)
    if field == "kv_transfer_params":
        message.kv_transfer_params = value
    with pytest.raises(InvalidRequest):
        codec.decode_request(message)


@pytest.mark.parametrize("stop_reason", [None, 7, "END"])
@pytest.mark.parametrize("finish_reason", [None, *FinishReason])
def test_output_round_trip(finish_reason: FinishReason | None, stop_reason: int | str | None) -> None:
    output = EngineOutput(
        request_id=RequestId("r"),
        token_ids=[4],
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        logprobs=Logprobs(2, b"12345678", b"12345678", b"1234"),
        prompt_logprobs=Logprobs(1, b"", b"", b""),
        kv_transfer_params={"lease_id": "x"},
        prefill_stats=PrefillStats(9, 4, 3, 2),
        error="why",
        adapter_load=AdapterLoad(AdapterTier.DISK, 0.5),
        acceptance=Acceptance(steps=2, proposed_tokens=6, accepted_tokens=5, switched_off=True),
    )
    assert codec.decode_output(codec.encode_outputs([output]).deltas[0]) == output


def test_pooling_round_trip() -> None:
    request = replace(REQUEST, sampling_params=b"", pooling_params=b"\x90")
    assert codec.decode_request(codec.encode_request(request).generate) == request
    output = EngineOutput(RequestId("r"), [], pooled=PooledOutput((2, 3), bytes(24)))
    assert codec.decode_output(codec.encode_outputs([output]).deltas[0]) == output


def test_an_empty_output_stays_empty() -> None:
    output = EngineOutput(RequestId("r"), [])
    assert codec.decode_output(codec.encode_outputs([output]).deltas[0]) == output


def test_a_tier_that_is_not_known_is_named() -> None:
    output = EngineOutput(RequestId("r"), adapter_load=AdapterLoad(AdapterTier.DRAM))
    delta = codec.encode_outputs([output]).deltas[0]
    delta.adapter_load.tier = "tape"
    with pytest.raises(InvalidRequest, match="tape"):
        codec.decode_output(delta)


def test_load_round_trip() -> None:
    load = EngineLoad(1, 2, 3, 4, 5, 6, 7, "nixl")
    assert codec.decode_load(codec.encode_load(load)) == load
    gains = (BatchGain(1, True, 1.5, 9), BatchGain(8, False, 0.0, 2))
    load = EngineLoad(speculation=SpeculationReport(4, 12, 5, gains))
    assert codec.decode_load(codec.encode_load(load)) == load


def test_enums_round_trip() -> None:
    assert [codec.decode_role(codec.encode_role(role)) for role in WorkerRole] == list(WorkerRole)
    assert [codec.decode_outcome(codec.encode_outcome(o)) for o in Outcome] == list(Outcome)
    with pytest.raises(InvalidRequest):
        codec.decode_role(0)  # type: ignore[arg-type]
