"""The span of an HTTP request, begun from its headers and ended from its record."""

from typing import Any

import pytest

from llmserve.apiserver.explain.record import HttpRecord, RecordHandle, SequenceRecord
from llmserve.apiserver.http.spans import HttpSpans, end
from llmserve.core.request import Outcome
from llmserve.tracing.base import NO_SPAN
from tests.support.spans import ROOT, KeptSpan, KeptSpans


def ended(record: HttpRecord) -> KeptSpan:
    kept = KeptSpans()
    end(HttpSpans(kept).begin("/v1/chat/completions", [], "x-1", "red"), record)
    (span,) = kept.spans
    assert span.ended
    return span


def record(status: int = 200, why: str = "", **sequence: Any) -> HttpRecord:
    ran = SequenceRecord("chatcmpl-1-ab", prompt_tokens=30, output_tokens=4, outcome="completed")
    for name, value in sequence.items():
        setattr(ran, name, value)
    return HttpRecord(
        ["x-1", "chatcmpl-1"], "red", model="tiny", status=status, error=why, sequences=[ran, ran]
    )


def test_it_begins_below_the_clients_own() -> None:
    kept = KeptSpans()
    headers = [(b"host", b"h"), (b"traceparent", ROOT.encode())]
    HttpSpans(kept).begin("/v1/completions", headers, "x-1", "red")
    span = kept.only("POST /v1/completions")
    assert span.parent == ROOT
    assert span.attributes["gen_ai.operation.name"] == "text_completion"
    assert span.attributes["llmserve.request_id"] == "x-1"


@pytest.mark.parametrize("path", ["/tokenize", "/admin/reload", "/v1/chat/completions/x"])
def test_what_asks_no_engine_is_not_traced(path: str) -> None:
    kept = KeptSpans()
    assert HttpSpans(kept).begin(path, [], "x-1", "red") is NO_SPAN
    assert kept.spans == []


def test_tokens_are_those_of_all_choices() -> None:
    span = ended(record(device_cached_tokens=16, store_cached_tokens=8))
    assert span.error == ""
    assert span.attributes["gen_ai.usage.input_tokens"] == 60
    assert span.attributes["gen_ai.usage.output_tokens"] == 8
    assert span.attributes["gen_ai.usage.cache_read.input_tokens"] == 48
    assert span.attributes["gen_ai.response.id"] == "chatcmpl-1"
    assert span.attributes["gen_ai.request.model"] == "tiny"
    assert span.attributes["llmserve.outcome"] == "completed"


@pytest.mark.parametrize(
    ("status", "error", "sequence_error", "told"),
    [
        (400, "too long", "", ""),
        (429, "", "the queue is full", ""),
        (503, "no router", "", "no router"),
        (500, "", "", "HTTP 500"),
        (200, "", "lost the worker", "lost the worker"),
        (0, "", "", ""),
    ],
    ids=["the client's", "refused", "ours", "unexplained", "after the status", "the client left"],
)
def test_it_fails_by_our_faults_alone(status: int, error: str, sequence_error: str, told: str) -> None:
    assert ended(record(status, error, error=sequence_error)).error == told


def test_a_request_that_was_refused_early_has_no_tokens() -> None:
    attributes = ended(HttpRecord(["x-1"], status=400)).attributes
    assert attributes["http.response.status_code"] == 400
    assert not any(name.startswith("gen_ai.usage") for name in attributes)
    assert "gen_ai.request.model" not in attributes


def test_it_is_over_when_the_last_part_is() -> None:
    handle, told = RecordHandle(HttpRecord()), []
    handle.when_closed(lambda: told.append(handle.record.ended_at))
    handle.sequence("a").ended(1.0, Outcome.COMPLETED, 1)
    handle.part_ended()
    assert not told
    handle.part_ended()
    assert told == [handle.record.ended_at]
