"""One trace a request, as a real OTLP receiver gets it, from a cluster of simulated engines; and its logs."""

import json
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import httpx
import pytest

from bench.cluster import Cluster, running
from tests.support.otlp import OtlpReceiver, Received, otlp_receiver, tree
from tests.support.simulated import simulated

MODEL = "SmolLM2-135M-Instruct"
LINE_SECONDS = 30.0  # the line is written after the answer
DROPPED_SECONDS = 40.0
pytestmark = pytest.mark.timeout(240)

_GRPC_CORE = re.compile(r"[IWE]\d{4} ")  # writes to stderr by itself
WHOLE = [
    "POST /v1/chat/completions (apiserver-0)",
    "  admit (apiserver-0)",
    "    queue (router-0)",
    "  leg prefill (apiserver-0)",
    "    prefill (prefill-0)",
    "  leg decode (apiserver-0)",
    "    decode (decode-0)",
    "      transfer (decode-0)",
]


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as started:
        yield started


@pytest.fixture(scope="module")
def cluster(receiver: OtlpReceiver) -> Iterator[Cluster]:
    manifest = simulated("sim.yaml")
    spec = manifest["spec"]
    spec["deployment"]["replicas"] = {"prefill": 1, "decode": 2}
    spec["scheduling"] = {"disaggregate": "always"}
    spec["transfer"] |= {"mode": "auto", "push_min_tokens": 1000}
    spec["observability"] = {"log_format": "json", "tracing": {"endpoint": receiver.endpoint}}
    # A batch that is not taken is given up soon; one that is, has time enough on a busy machine.
    environment = {"OTEL_EXPORTER_OTLP_TIMEOUT": "5", "OTEL_EXPORTER_OTLP_HEADERS": "x-token=secret"}
    with mock.patch.dict(os.environ, environment), running(manifest) as started:
        yield started


def traceparent(sampled: bool = True) -> tuple[str, str, str]:
    """The header, its trace id and its span id."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}", trace_id, span_id


def ask(cluster: Cluster, tokens: int = 8, prompt_bytes: int = 200, **headers: str) -> httpx.Response:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": secrets.token_hex(prompt_bytes)}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    answer = httpx.post(f"{cluster.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def one(spans: list[Received], name: str) -> Received:
    (found,) = (span for span in spans if span.name == name)
    return found


def has(*names: str) -> Any:
    return lambda spans: set(names) <= {span.name for span in spans}


def whole(spans: list[Received]) -> bool:
    return len(spans) == len(WHOLE)


def test_a_request_is_one_trace_from_http_to_decode(cluster: Cluster, receiver: OtlpReceiver) -> None:
    answer = ask(cluster)
    spans = receiver.trace(answer.headers["x-llmserve-trace-id"], whole)
    assert [line.replace("decode-1", "decode-0") for line in tree(spans)] == WHOLE
    assert not any(span.failed for span in spans)
    root, transfer = spans[0].attributes, one(spans, "transfer").attributes
    usage = answer.json()["usage"]
    assert root["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert root["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 8
    assert root["gen_ai.response.id"] == answer.json()["id"]
    assert (root["http.response.status_code"], root["llmserve.outcome"]) == (200, "completed")
    assert transfer["llmserve.transfer.transport"] == answer.headers["x-llmserve-transport"]
    assert transfer["llmserve.transfer.bytes"] > 0
    assert one(spans, "prefill").attributes["gen_ai.usage.output_tokens"] == 1
    assert "first token" in one(spans, "decode").events
    roles = ("apiserver", "router", "prefill", "decode")
    assert {span.service for span in spans} == {f"llmserve-{role}" for role in roles}
    by_id = {span.span_id: span for span in spans}
    assert all(by_id[span.parent_id].began <= span.began for span in spans[1:])


def test_a_push_is_in_the_trace_as_a_pull_is(cluster: Cluster, receiver: OtlpReceiver) -> None:
    answers = (ask(cluster, prompt_bytes=1500) for _ in range(8))  # a push is tried among the first ones
    answer = next(one for one in answers if one.headers["x-llmserve-handover"] == "push")
    spans = receiver.trace(answer.headers["x-llmserve-trace-id"], whole)
    assert one(spans, "transfer").attributes["llmserve.transfer.mode"] == "push"
    assert one(spans, "transfer").parent_id == one(spans, "decode").span_id
    assert one(spans, "leg decode").began <= one(spans, "leg prefill").began, "decode waits for it"


def test_the_endpoint_is_told_who_asks(receiver: OtlpReceiver, cluster: Cluster) -> None:
    answer = ask(cluster)
    receiver.trace(answer.headers["x-llmserve-trace-id"], whole)
    assert receiver.metadata["x-token"] == "secret"


def test_the_trace_of_the_client_goes_on(cluster: Cluster, receiver: OtlpReceiver) -> None:
    header, trace_id, span_id = traceparent()
    answer = ask(cluster, traceparent=header)
    spans = receiver.trace(trace_id, whole)
    assert answer.headers["x-llmserve-trace-id"] == trace_id
    assert one(spans, "POST /v1/chat/completions").parent_id == span_id


def test_what_the_client_does_not_sample_is_not_sent(cluster: Cluster, receiver: OtlpReceiver) -> None:
    header, trace_id, _ = traceparent(sampled=False)
    ask(cluster, traceparent=header)
    after, later, _ = traceparent()
    ask(cluster, traceparent=after)
    receiver.trace(later, whole)
    assert [span for span in receiver.spans if span.trace_id == trace_id] == []


def explained(cluster: Cluster, answer: httpx.Response) -> dict[str, Any]:
    url = f"{cluster.url}/v1/requests/{answer.headers['x-request-id']}/explain"
    record: dict[str, Any] = httpx.get(url, timeout=10).json()
    return record


def test_a_request_that_is_explained_names_its_trace(cluster: Cluster) -> None:
    answer = ask(cluster)
    assert explained(cluster, answer)["trace_id"] == answer.headers["x-llmserve-trace-id"]


def test_logs_are_json_and_name_request_and_trace(cluster: Cluster) -> None:
    answer = ask(cluster)
    mine: list[dict[str, Any]] = []
    deadline = time.monotonic() + LINE_SECONDS
    while not mine:
        assert time.monotonic() < deadline, "no line of the request"
        lines = _said(cluster, "apiserver-0")
        mine = [line for line in lines if line.get("trace_id") == answer.headers["x-llmserve-trace-id"]]
        time.sleep(0.05)
    assert mine[-1]["request_id"].startswith(answer.json()["id"])
    assert {line["process"] for line in lines} == {"apiserver-0"}
    assert any(line["logger"].startswith("vllm") for line in lines), "vLLM's own lines"
    for name in ("router-0", "kvmanager-0", "prefill-0", "decode-0"):
        assert {line["process"] for line in _said(cluster, name)} == {name}


def _said(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """Each line of its log that is ours or vLLM's."""
    lines = (cluster.run_dir / "logs" / f"{name}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if not _GRPC_CORE.match(line)]


@contextmanager
def streaming(cluster: Cluster, tokens: int) -> Iterator[tuple[httpx.Response, str]]:
    """An answer that has begun, and its trace id."""
    header, trace_id, _ = traceparent()
    body = {"model": MODEL, "prompt": secrets.token_hex(100), "max_tokens": tokens, "ignore_eos": True}
    with httpx.stream(
        "POST",
        f"{cluster.url}/v1/completions",
        json=body | {"stream": True},
        headers={"traceparent": header},
        timeout=60,
    ) as answer:
        yield answer, trace_id


def test_a_request_that_moves_shows_both_its_decodes(cluster: Cluster, receiver: OtlpReceiver) -> None:
    with streaming(cluster, 400) as (answer, trace_id):
        lines = answer.iter_lines()
        for _ in range(20):
            next(lines)
        killed = explained(cluster, answer)["sequences"][0]["attempts"][0]["decode"]
        os.kill(cluster.pid(killed), signal.SIGKILL)
        assert "data: [DONE]" in list(lines)
    spans = receiver.trace(trace_id, has("POST /v1/completions", "decode"))
    lost, last = (span for span in spans if span.name == "leg decode")
    assert (lost.failed, lost.attributes["error.type"]) == (True, "WorkerLost")
    assert lost.attributes["llmserve.worker"] == killed != last.attributes["llmserve.worker"]
    assert not last.failed
    assert one(spans, "decode").parent_id == last.span_id, "the killed one sends nothing any more"
    root = one(spans, "POST /v1/completions")
    assert (root.failed, root.attributes["llmserve.attempts"]) == (False, 2)


def test_a_client_that_leaves_ends_its_spans(cluster: Cluster, receiver: OtlpReceiver) -> None:
    with streaming(cluster, 2000) as (answer, trace_id):
        next(answer.iter_lines())
    spans = receiver.trace(trace_id, has("POST /v1/completions", "decode"))
    assert one(spans, "decode").attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert one(spans, "leg decode").attributes["llmserve.outcome"] == "cancelled"
    assert one(spans, "POST /v1/completions").attributes["llmserve.outcome"] == "cancelled"
    assert not any(span.failed for span in spans)


def test_a_receiver_that_is_away_changes_nothing(cluster: Cluster, receiver: OtlpReceiver) -> None:
    receiver.stop()
    already = len(_said(cluster, "apiserver-0"))
    try:
        dropped = 'trace_spans_total{result="dropped"}'
        before = cluster.metrics("apiserver-0").get(dropped, 0.0)
        deadline = time.monotonic() + DROPPED_SECONDS
        while cluster.metrics("apiserver-0").get(dropped, 0.0) == before:
            assert time.monotonic() < deadline, "nothing is dropped"
            ask(cluster, tokens=1)
        said = _said(cluster, "apiserver-0")[already:]
    finally:
        receiver.start()
    assert [line for line in said if "opentelemetry" in line["logger"]] == [], "the exporter repeats itself"
    (line,) = (line for line in said if line["logger"] == "llmserve.tracing.sender")
    assert f"spans are dropped, they cannot be sent to {receiver.endpoint}" in line["message"]
    header, trace_id, _ = traceparent()
    ask(cluster, traceparent=header)
    receiver.trace(trace_id, has("POST /v1/chat/completions"))
