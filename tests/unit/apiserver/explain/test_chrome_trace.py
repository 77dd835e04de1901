"""A request as a trace for Perfetto, and as a row."""

import itertools
import json
import random
from typing import Any

import pytest

from llmserve.apiserver.explain.chrome_trace import chrome_trace
from llmserve.apiserver.explain.record import HttpRecord, RecordHandle
from llmserve.apiserver.explain.view import row, view
from llmserve.core.request import HandoverReport, Outcome, PrefillStats
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2


def _served() -> HttpRecord:
    """Placed at once; the first token after 0.5 s, decode's at once, 40 tokens after 2 s."""
    handle = RecordHandle(HttpRecord(["x-1"], "red", "/v1/chat/completions"))
    began = handle.record.started_at
    sequence = handle.sequence("chatcmpl-1-ab")
    sequence.asked()
    placement = router_pb2.Placement(
        prefill=common_pb2.WorkerInfo(worker_id="prefill-0"),
        decode=common_pb2.WorkerInfo(worker_id="decode-0"),
    )
    sequence.placed(router_pb2.Placed(placement=placement, queue_seconds=0.25))
    sequence.first_token(began + 0.5, "prefill", 300, PrefillStats(300, 128, 64))
    sequence.handed_over(HandoverReport("tcp", 2**21, 0.004, ("nixl: timed out",)))
    sequence.decode_started_at = began + 0.6
    sequence.ended(began + 2.0, Outcome.COMPLETED, 40)
    handle.record.status, handle.record.model = 200, "tiny"
    handle.record.ended_at = began + 2.5
    return handle.record


def _refused() -> HttpRecord:
    record = HttpRecord(["x-2"], "red", "/v1/chat/completions", status=429, error="full")
    record.ended_at = record.started_at + 1.0
    return record


def _spans(record: HttpRecord) -> list[dict[str, Any]]:
    trace = json.loads(json.dumps(chrome_trace(view(record, "apiserver-0"))))
    assert trace["displayTimeUnit"] == "ms"
    named = [one for one in trace["traceEvents"] if one["ph"] == "M"]
    spans = [one for one in trace["traceEvents"] if one["ph"] == "X"]
    assert {one["tid"] for one in spans} == {one["tid"] for one in named if one["name"] == "thread_name"}
    return spans


def test_each_phase_is_a_span_in_microseconds_within_that_of_http() -> None:
    http, *phases = _spans(_served())
    assert (http["name"], http["ts"], http["dur"]) == ("POST /v1/chat/completions", 0, 2.5e6)
    assert http["args"] == {"status": 200, "model": "tiny", "error": None}
    assert [one["name"] for one in phases][-4:] == ["prefill", "hand-over", "decode", "finish"]
    decode = phases[-2]
    assert (decode["ts"], decode["dur"]) == (0.6e6, 1.4e6)
    assert sum(one["dur"] for one in phases) == http["dur"]


@pytest.mark.parametrize("number", range(10))
def test_no_span_begins_before_the_one_ahead_of_it_has_ended(number: int) -> None:
    """Perfetto would drop it (slice_drop_overlapping_complete_event). It reads times as whole nanoseconds."""
    ends = [0.0, *itertools.accumulate(random.Random(number).uniform(1e-7, 0.3) for _ in range(6))]
    shown = view(_served(), "apiserver-0")
    phases = shown["sequences"][0]["phases"]
    for phase, (begin, end) in zip(phases, itertools.pairwise(ends), strict=False):
        phase |= {"begin_seconds": begin, "end_seconds": end}
    trace = json.loads(json.dumps(chrome_trace(shown)))["traceEvents"]
    spans = [one for one in trace if one["ph"] == "X" and one["tid"] == 2]
    assert len(spans) == len(phases) >= 4
    for one, following in itertools.pairwise(spans):
        assert int(1000 * one["ts"]) + int(1000 * one["dur"]) == int(1000 * following["ts"])
    assert all(one["dur"] >= 0 and one["pid"] > 0 and one["tid"] > 0 for one in trace if one["ph"] == "X")


def test_spans_say_what_is_known_of_them() -> None:
    facts = {one["name"]: one["args"] for one in _spans(_served())}
    prefill = {"worker": "prefill-0", "prompt_tokens": 300, "cached_device": 128, "cached_store": 64}
    assert facts["prefill"] == prefill
    assert (facts["hand-over"]["transport"], facts["hand-over"]["mode"]) == ("tcp", "pull")
    assert facts["decode"] == {"worker": "decode-0", "output_tokens": 40}
    assert facts["queue"]["seconds"] == 0.25
    assert facts["finish"] == {}


def test_a_request_that_was_refused_has_one_span() -> None:
    (http,) = _spans(_refused())
    assert http["args"]["error"] == "full"


def test_a_row_has_what_lists_are_filtered_by() -> None:
    shown = json.loads(json.dumps(row(_served())))
    assert (shown["tenant"], shown["model"], shown["status"], shown["outcome"]) == (
        "red",
        "tiny",
        200,
        "completed",
    )
    assert (shown["seconds"], shown["queue_seconds"], shown["first_token_seconds"]) == (2.5, 0.25, 0.5)
    assert (shown["prompt_tokens"], shown["cached_tokens"], shown["output_tokens"]) == (300, 192, 40)
    assert (shown["prefill"], shown["decode"], shown["transport"]) == ("prefill-0", "decode-0", "tcp")
    assert (shown["fell_back"], shown["running"], shown["attempts"]) == (True, False, 1)


def test_a_row_of_what_was_never_placed() -> None:
    shown = row(_refused())
    assert (shown["status"], shown["error"], shown["outcome"], shown["decode"]) == (429, "full", None, None)
    assert (shown["fell_back"], shown["first_token_seconds"], shown["attempts"]) == (False, None, 0)
    running = row(HttpRecord(["x-3"], "red", "/v1/completions"))
    assert (running["running"], running["status"]) == (True, None)
