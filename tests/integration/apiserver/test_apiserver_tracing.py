"""The apiserver's part of a trace, and what goes with the request to router and workers."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llmserve.core.errors import QueueFull
from llmserve.core.outcome import Outcome
from llmserve.tracing.base import trace_id_of
from tests.support.otlp import OtlpReceiver, Received, otlp_receiver

BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 4}
ROOT = "POST /v1/completions"


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as started:
        yield started


@pytest.fixture(scope="session")
def manifest(receiver: OtlpReceiver) -> dict[str, Any]:
    return {
        "kind": "LLMServe",
        "models": {"primary": {"source": "hub:some/model"}},
        "observability": {"tracing": {"endpoint": receiver.endpoint}},
    }


async def traced(http: httpx.AsyncClient, receiver: OtlpReceiver, **fields: Any) -> list[Received]:
    """All spans of a request's trace, when its root has come."""
    trace_id = (await http.post("/v1/completions", json=BODY | fields)).headers["x-llmserve-trace-id"]

    def is_whole(spans: list[Received]) -> bool:
        return any(span.name == ROOT for span in spans)

    return await asyncio.to_thread(receiver.trace, trace_id, is_whole)


def named(spans: list[Received], name: str) -> list[Received]:
    return [span for span in spans if span.name == name]


async def test_choices_stand_side_by_side(
    cluster: Any, http: httpx.AsyncClient, receiver: OtlpReceiver
) -> None:
    spans = await traced(http, receiver, n=2)
    (root,) = named(spans, ROOT)
    assert {span.parent_id for span in spans} == {root.span_id, ""}
    for name in ("admit", "leg prefill", "leg decode"):
        assert len({span.attributes["llmserve.request_id"] for span in named(spans, name)}) == 2
    assert root.attributes["gen_ai.usage.output_tokens"] == 8


async def test_router_and_workers_get_the_span_that_asks_them(
    cluster: Any, http: httpx.AsyncClient, receiver: OtlpReceiver
) -> None:
    spans = await traced(http, receiver)
    (admit,) = cluster.router.admits
    (prefill,) = cluster.prefill.seen.values()
    (decode,) = cluster.decode.seen.values()
    for asked, name in ((admit, "admit"), (prefill, "leg prefill"), (decode, "leg decode")):
        assert asked.traceparent.split("-")[2] == named(spans, name)[0].span_id


async def test_a_refusal_fails_the_admission_and_not_the_server(
    cluster: Any, http: httpx.AsyncClient, receiver: OtlpReceiver
) -> None:
    cluster.router.refuse_with = (Outcome.REJECTED, QueueFull("1024 requests wait already"))
    spans = await traced(http, receiver)
    (admit,), (root,) = named(spans, "admit"), named(spans, ROOT)
    assert (admit.failed, admit.status) == (True, "1024 requests wait already")
    assert (admit.attributes["error.type"], admit.attributes["llmserve.outcome"]) == ("QueueFull", "rejected")
    assert (root.failed, root.attributes["http.response.status_code"]) == (False, 429)


async def test_a_lease_is_given_back_in_the_name_of_its_request(
    cluster: Any, http: httpx.AsyncClient, receiver: OtlpReceiver
) -> None:
    spans = await traced(http, receiver, stop=[" "])
    await cluster.prefill.until(lambda: bool(cluster.prefill.released_by))
    (traceparent,) = cluster.prefill.released_by
    assert trace_id_of(traceparent) == spans[0].trace_id


async def test_what_asks_no_engine_has_no_trace(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await http.post("/tokenize", json={"model": "tiny", "prompt": "abc"})
    assert answer.status_code == 200
    assert "x-llmserve-trace-id" not in answer.headers
