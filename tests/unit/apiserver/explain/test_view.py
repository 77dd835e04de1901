"""A record as it is shown, as JSON and to people."""

import json

import pytest

from llmserve.apiserver.explain.record import HttpRecord, RecordHandle
from llmserve.apiserver.explain.view import view
from llmserve.cli.explain import lines
from llmserve.core.adapters import AdapterLoad, AdapterTier, NamedAdapter
from llmserve.core.ids import AdapterDigest
from llmserve.core.request import Acceptance, HandoverReport, Outcome, PrefillStats
from llmserve.rpc.adapters import encode_tier
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2


def _placed(prefill: str, decode: str, queue_seconds: float = 0.25) -> router_pb2.Placed:
    report = router_pb2.PlacementReport(
        requests_ahead=7,
        used_up_seconds={"tokens in flight": 0.2},
        tenant_weight=4.0,
        tenant_share=0.8,
        predicted_cached_tokens=48,
        handover=router_pb2.HandoverChoice(
            push=True, reason="it takes less time", pull_seconds=1.5, push_seconds=0.25
        ),
        candidates=[
            router_pb2.PlacementCandidate(
                prefill=prefill, decode=decode, seconds={"queue": 0.5, "compute": 0.125}
            )
        ],
    )
    placement = router_pb2.Placement(
        prefill=common_pb2.WorkerInfo(worker_id=prefill), decode=common_pb2.WorkerInfo(worker_id=decode)
    )
    return router_pb2.Placed(placement=placement, queue_seconds=queue_seconds, report=report)


def _migrated() -> HttpRecord:
    """Its first decode worker was lost, its KV fell back to tcp, and it was completed."""
    handle = RecordHandle(HttpRecord(["x-1"], "red", "/v1/chat/completions"))
    handle.known_as("chatcmpl-1")
    began = handle.record.started_at
    sequence = handle.sequence("chatcmpl-1-ab")
    sequence.asked()
    sequence.placed(_placed("prefill-0", "decode-0"))
    sequence.worker_failed("decode-0", "lost the worker decode-0: reset by peer")
    sequence.asked()
    sequence.placed(_placed("prefill-0", "decode-1", 0.0))
    sequence.first_token(began + 0.5, "prefill", 300, PrefillStats(300, 128, 64))
    sequence.handovers.append(HandoverReport("tcp", 2**21, 0.004, ("nixl: timed out",)))
    sequence.ended(began + 2.0, Outcome.COMPLETED, 40)
    handle.record.status, handle.record.trace_id, handle.record.model = 200, "4bf92f", "tiny"
    handle.part_ended()
    handle.part_ended()
    return handle.record


def test_the_view_has_all_of_it() -> None:
    shown = json.loads(json.dumps(view(_migrated(), "apiserver-1")))
    assert (shown["request_id"], shown["response_ids"]) == ("x-1", ["chatcmpl-1"])
    assert (shown["apiserver"], shown["status"], shown["running"]) == ("apiserver-1", 200, False)
    assert (shown["trace_id"], shown["model"]) == ("4bf92f", "tiny")
    (sequence,) = shown["sequences"]
    assert sequence["cached_tokens"] == {"device": 128, "store": 64}
    assert sequence["first_token_seconds"] == 0.5
    assert sequence["ended_seconds"] == 2.0
    failed, last = sequence["attempts"]
    assert failed["queue"] == {
        "seconds": 0.25,
        "requests_ahead": 7,
        "used_up_seconds": {"tokens in flight": 0.2},
        "prefetches": [],
    }
    assert failed["tenant"] == {"weight": 4.0, "share": 0.8}
    assert (failed["failed_worker"], last["failed_worker"]) == ("decode-0", None)
    assert last["candidates"][0]["predicted_seconds"] == 0.625
    assert last["predicted_cached_tokens"] == 48
    assert last["handover"] == {
        "mode": "push",
        "reason": "it takes less time",
        "pull_seconds": 1.5,
        "push_seconds": 0.25,
    }
    (handover,) = sequence["handovers"]
    assert (handover["transport"], handover["mode"], handover["bytes"]) == ("tcp", "pull", 2**21)
    assert handover["fallbacks"] == ["nixl: timed out"]


def test_people_read_the_same() -> None:
    page = "\n".join(lines(view(_migrated(), "apiserver-1")))
    assert "  /v1/chat/completions to model tiny of tenant red, at apiserver-1, came " in page
    for text in (
        "x-1  chatcmpl-1",
        "hand-over: push, because it takes less time (pull 1.50 s, push 250.0 ms)",
        "tenant red, at apiserver-1",
        "trace 4bf92f",
        "300 prompt tokens, cached 128 on the device and 64 in the KV store; 40 tokens generated",
        "first token after 500.0 ms, from prefill",
        "attempt 1: on prefill-0 -> decode-0",
        "7 waited already; used up meanwhile: tokens in flight (200.0 ms)",
        "weight 4, 80% of the turns",
        "candidate prefill-0 -> decode-1: predicted 625.0 ms (compute 125.0 ms, queue 500.0 ms)",
        "failed on decode-0: lost the worker decode-0: reset by peer",
        "KV: 2.0 MiB in 4.0 ms over tcp, pull",
        "fell back: nixl: timed out",
    ):
        assert text in page, page


def test_an_adapter_has_its_version_and_what_each_leg_waited_for_it() -> None:
    record = HttpRecord(["x-1"], "red", "/v1/completions")
    sequence = RecordHandle(record).sequence("a", NamedAdapter("sql", AdapterDigest("3f" * 32), "tiny"))
    sequence.adapter_loads.append(("prefill", AdapterLoad(AdapterTier.DISK, 0.25)))
    sequence.adapter_loads.append(("decode", AdapterLoad(AdapterTier.DEVICE)))
    shown = json.loads(json.dumps(view(record, "apiserver-0")))
    assert shown["sequences"][0]["adapter"] == {
        "name": "sql",
        "version": "3f" * 32,
        "loads": [
            {"leg": "prefill", "tier": "disk", "seconds": 0.25},
            {"leg": "decode", "tier": "device", "seconds": 0.0},
        ],
    }
    page = "\n".join(lines(shown))
    assert "adapter sql, version 3f3f3f3f3f3f\n" in page
    assert "prefill: loaded from the disk, waited 250.0 ms for it" in page
    assert "decode: it was loaded, did not wait" in page


def test_which_workers_brought_the_adapter_near_while_the_request_waited() -> None:
    handle = RecordHandle(HttpRecord(["x-1"], "red", "/v1/completions"))
    sequence = handle.sequence("a", NamedAdapter("sql", AdapterDigest("3f" * 32), "tiny"))
    sequence.asked()
    placed = _placed("prefill-0", "decode-0")
    disk, source = encode_tier(AdapterTier.DISK), encode_tier(AdapterTier.SOURCE)
    placed.report.prefetches.extend(
        [
            router_pb2.AdapterPrefetch(worker_id="prefill-0", tier=disk, seconds=0.125),
            router_pb2.AdapterPrefetch(worker_id="decode-0", tier=source),
        ]
    )
    sequence.placed(placed)
    shown = json.loads(json.dumps(view(handle.record, "apiserver-0")))
    assert shown["sequences"][0]["attempts"][0]["queue"]["prefetches"] == [
        {"worker": "prefill-0", "tier": "disk", "seconds": 0.125},
        {"worker": "decode-0", "tier": "source", "seconds": None},
    ]
    page = "\n".join(lines(shown))
    meanwhile = "its adapter from {} to the shared memory of {} meanwhile: {}"
    assert meanwhile.format("the disk", "prefill-0", "took 125.0 ms") in page
    assert meanwhile.format("its source", "decode-0", "under way") in page


def test_what_became_of_proposed_tokens() -> None:
    record = HttpRecord(["x-1"], "red", "/v1/completions")
    sequence = RecordHandle(record).sequence("a")
    (shown,) = view(record, "apiserver-0")["sequences"]
    assert shown["speculation"] is None
    sequence.acceptance = Acceptance(steps=4, proposed_tokens=12, accepted_tokens=9)
    (shown,) = view(record, "apiserver-0")["sequences"]
    assert shown["speculation"] == {
        "steps": 4,
        "proposed_tokens": 12,
        "accepted_tokens": 9,
        "acceptance": 0.75,
        "tokens_per_step": 3.25,
        "switched_off": False,
    }
    said = "    speculation: 9 of 12 proposed tokens accepted (75%), 3.25 a step"
    assert said in lines(view(record, "apiserver-0"))


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        ((0, 0, 0, True), "none: the engine measured that proposals do not pay"),
        ((0, 0, 0, False), "none: nothing to propose"),
        (
            (5, 15, 0, True),
            "0 of 15 proposed tokens accepted (0%), 1.00 a step; switched off since, because it does not pay",
        ),
    ],
)
def test_why_a_request_ran_without_speculation(counted: tuple[int, int, int, bool], said: str) -> None:
    record = HttpRecord(["x-1"], "red", "/v1/completions")
    RecordHandle(record).sequence("a").acceptance = Acceptance(*counted)
    assert f"    speculation: {said}" in lines(view(record, "apiserver-0"))


def test_one_that_waits_for_its_place() -> None:
    handle = RecordHandle(HttpRecord(["x-1"], "red", "/v1/completions"))
    handle.sequence("a").asked()
    shown = view(handle.record, "apiserver-0")
    assert shown["running"]
    assert shown["sequences"][0]["attempts"][0]["placed_seconds"] is None
    assert any("not placed" in line for line in lines(shown))


def test_kv_that_was_recomputed_says_why() -> None:
    record = _migrated()
    record.sequences[0].handovers[0] = HandoverReport("", 0, 0.1, reason="the lease has ended")
    page = "\n".join(lines(view(record, "a")))
    assert "KV: recomputed: the lease has ended" in page


def test_that_one_worker_did_it_all_says_why() -> None:
    handle = RecordHandle(HttpRecord(["x-1"], "red", "/v1/completions"))
    placed = _placed("", "prefill-0")
    placed.report.note = "no decode worker can be used (decode-0: reset by peer)"
    sequence = handle.sequence("a")
    sequence.asked()
    sequence.placed(placed)
    shown = view(handle.record, "apiserver-0")
    assert shown["sequences"][0]["attempts"][0]["note"] == placed.report.note
    page = "\n".join(lines(shown))
    assert "prefill-0 does it all: no decode worker can be used (decode-0: reset by peer)" in page
