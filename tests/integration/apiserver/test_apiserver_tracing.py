"""The apiserver's part of a trace, and what goes with the request to router and workers."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
import pytest_asyncio

from llmserve.apiserver.request import rules
from llmserve.core.errors import EngineDead, QueueFull
from llmserve.core.request import Outcome
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_PREFILL
from llmserve.tracing.base import trace_id_of
from tests.integration.apiserver.conftest import FakeCluster
from tests.integration.apiserver.manifests import manifest_of
from tests.support.otlp import OtlpReceiver, Received, otlp_receiver

BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 4}
ROOT = "POST /v1/completions"


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as started:
        yield started


@pytest.fixture(scope="session")
def manifest(receiver: OtlpReceiver) -> dict[str, Any]:
    return manifest_of(observability={"tracing": {"endpoint": receiver.endpoint}})


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
    spans = await traced(http, receiver, n=2, prompt="x" * 40)
    (root,) = named(spans, ROOT)
    assert {span.parent_id for span in spans} == {root.span_id, ""}
    for name, count in (("admit", 1), ("leg prefill", 1), ("leg decode", 3)):
        assert len({span.attributes["llmserve.request_id"] for span in named(spans, name)}) == count
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


class Own:
    """A cluster with more in its manifest."""

    spec: Mapping[str, Any]

    @pytest_asyncio.fixture
    async def cluster(self, tiny_model: Path, manifest: dict[str, Any]) -> AsyncIterator[FakeCluster]:
        started = FakeCluster(tiny_model)
        try:
            await started.start({**manifest, **self.spec})
            yield started
        finally:
            await started.aclose()


class TestPush(Own):
    spec = MappingProxyType({"transfer": {"mode": "push"}})

    async def test_a_prefill_that_fails_is_not_the_failure_of_decode(
        self, cluster: FakeCluster, http: httpx.AsyncClient, receiver: OtlpReceiver
    ) -> None:
        await cluster.add("prefill-1", WORKER_ROLE_PREFILL)
        cluster.prefill.fail_with = EngineDead("gone")
        spans = await traced(http, receiver)
        failed, again = named(spans, "leg prefill")
        assert (failed.failed, failed.attributes["error.type"], again.failed) == (True, "EngineDead", False)
        left, last = named(spans, "leg decode")
        assert (left.failed, left.attributes["llmserve.outcome"]) == (False, "cancelled")
        assert left.attributes["llmserve.reason"] == failed.status
        assert "error.type" not in left.attributes
        assert not last.failed


class TestDeadlines(Own):
    spec = MappingProxyType({"scheduling": {"request_timeout_seconds": 0.2}})

    async def test_a_leg_that_the_deadline_ended_has_failed(
        self, cluster: FakeCluster, http: httpx.AsyncClient, receiver: OtlpReceiver
    ) -> None:
        cluster.decode.pause_at = 0
        (leg,) = named(await traced(http, receiver, seed=1), "leg decode")
        assert (leg.failed, leg.attributes["error.type"]) == (True, "DeadlineExceeded")
        assert leg.status == "the request took longer than 0.2 s"
        assert "llmserve.outcome" not in leg.attributes


class TestAdmissionDeadline(Own):
    spec = MappingProxyType({"scheduling": {"queue_timeout_seconds": 0.1, "router_patience_seconds": 0.1}})

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rules, "_ANSWER_SECONDS", 0.1)

    async def test_a_router_that_does_not_answer(
        self, cluster: FakeCluster, http: httpx.AsyncClient, receiver: OtlpReceiver
    ) -> None:
        cluster.router.hold = True
        (admit,) = named(await traced(http, receiver), "admit")
        assert (admit.failed, admit.attributes["error.type"]) == (True, "RouterUnavailable")
        assert admit.status.startswith("the router gave no place within 0.3 s")


async def test_what_asks_no_engine_has_no_trace(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await http.post("/tokenize", json={"model": "tiny", "prompt": "abc"})
    assert answer.status_code == 200
    assert "x-llmserve-trace-id" not in answer.headers
