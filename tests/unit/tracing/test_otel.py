"""Spans as a real OTLP receiver gets them: sampling, context, status, and an endpoint that is away."""

import asyncio
import logging.config
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from llmserve.config.schema.service import Tracing
from llmserve.core.errors import ManifestError, WorkerLost
from llmserve.rpc.wires.authority import Authority
from llmserve.tracing.base import NO_SPAN, SpanKind, Tracer, ending, trace_id_of
from llmserve.tracing.open import open_tracer
from tests.support.certificates import make_host_certificate
from tests.support.otlp import OtlpReceiver, Received, otlp_receiver

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}-00"


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as started:
        yield started


class Traced:
    """A tracer; what it sent is at the receiver when it is closed."""

    def __init__(self, tracer: Tracer, registry: CollectorRegistry) -> None:
        self.tracer, self._registry = tracer, registry

    def spans(self, result: str) -> float:
        return self._registry.get_sample_value("trace_spans_total", {"result": result}) or 0.0


@asynccontextmanager
async def tracing(
    endpoint: str | None, sample_ratio: float = 1.0, flush_seconds: float = 10.0
) -> AsyncIterator[Traced]:
    """The first connection may take its time on a busy machine."""
    registry, settings = CollectorRegistry(), Tracing(endpoint=endpoint, sample_ratio=sample_ratio)
    tracer = open_tracer(
        settings,
        role="decode",
        process="decode-0",
        cluster="c",
        registry=registry,
        flush_seconds=flush_seconds,
    )
    try:
        yield Traced(tracer, registry)
    finally:
        await tracer.aclose()
        await tracer.aclose()  # idempotent


def only(receiver: OtlpReceiver) -> Received:
    (span,) = receiver.spans
    return span


async def test_a_span_arrives_as_it_was_told(receiver: OtlpReceiver) -> None:
    async with tracing(receiver.endpoint) as traced:
        span = traced.tracer.begin(
            "decode", SpanKind.SERVER, SAMPLED, {"llmserve.tenant": "red"}, at_unix=100.5
        )
        span.set_attributes({"gen_ai.usage.output_tokens": 7})
        span.event("first token", {})
        span.end(at_unix=101.0)
        span.end(ValueError("a second end does not count"))
    arrived = only(receiver)
    assert (arrived.name, arrived.process, arrived.service) == ("decode", "decode-0", "llmserve-decode")
    assert (arrived.trace_id, arrived.parent_id) == (TRACE_ID, SPAN_ID)
    assert (arrived.began, arrived.ended, arrived.failed) == (100.5, 101.0, False)
    assert arrived.attributes == {"llmserve.tenant": "red", "gen_ai.usage.output_tokens": 7}
    assert arrived.events == ("first token",)
    assert (traced.spans("sent"), traced.spans("dropped")) == (1, 0)


@pytest.mark.parametrize(("trusted", "sent"), [("ours", 1), ("theirs", 0)])
async def test_a_receiver_with_a_certificate_of_an_authority_of_ones_own(
    trusted: str, sent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorities = {name: Authority.make(name, 1.0) for name in ("ours", "theirs")}
    for name, authority in authorities.items():
        authority.write(tmp_path / name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / trusted / "ca" / "ca.crt"))
    flush_seconds = 10.0 if sent else 0.5
    with otlp_receiver(make_host_certificate(authorities["ours"], tmp_path)) as secure:
        async with tracing(secure.endpoint, flush_seconds=flush_seconds) as traced:
            traced.tracer.begin("decode", SpanKind.SERVER, SAMPLED, {}).end()
        assert len(secure.spans) == sent
    assert (traced.spans("sent"), traced.spans("dropped")) == (sent, 1 - sent)


async def test_what_goes_with_the_request_names_the_span(receiver: OtlpReceiver) -> None:
    async with tracing(receiver.endpoint) as traced:
        span = traced.tracer.begin("a", SpanKind.SERVER, "")
        below = traced.tracer.begin("b", SpanKind.CLIENT, span.traceparent)
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", span.traceparent)
        assert trace_id_of(span.traceparent) == span.trace_id == below.trace_id
        below.end()
        span.end()
    first, second = receiver.spans
    assert first.parent_id == second.span_id


@pytest.mark.parametrize("parent", ["", "00-abc", f"00-{'0' * 32}-{SPAN_ID}-01", "\n", "00-" + "z" * 50])
async def test_a_wrong_traceparent_is_none(receiver: OtlpReceiver, parent: str) -> None:
    async with tracing(receiver.endpoint) as traced:
        traced.tracer.begin("a", SpanKind.SERVER, parent).end()
    assert only(receiver).parent_id == ""


@pytest.mark.parametrize(
    ("ratio", "parent", "is_sent"),
    [(0.0, "", False), (1.0, "", True), (0.0, SAMPLED, True), (1.0, NOT_SAMPLED, False)],
    ids=["none", "all", "the client wants it", "the client does not"],
)
async def test_who_begins_a_trace_decides(
    receiver: OtlpReceiver, ratio: float, parent: str, is_sent: bool
) -> None:
    async with tracing(receiver.endpoint, ratio) as traced:
        span = traced.tracer.begin("a", SpanKind.SERVER, parent)
        assert span.recording == is_sent
        below = traced.tracer.begin("b", SpanKind.CLIENT, span.traceparent)
        assert below.trace_id == span.trace_id, "a trace that is not sent has a name all the same"
        below.end()
        span.end()
    assert len(receiver.spans) == (2 if is_sent else 0)


async def test_errors_and_cancellations(receiver: OtlpReceiver) -> None:
    async with tracing(receiver.endpoint) as traced:
        with pytest.raises(WorkerLost), ending(traced.tracer.begin("failed", SpanKind.CLIENT, "")):
            raise WorkerLost("lost the worker decode-0")
        with pytest.raises(GeneratorExit), ending(traced.tracer.begin("left", SpanKind.CLIENT, "")):
            raise GeneratorExit
        with ending(traced.tracer.begin("done", SpanKind.CLIENT, "")):
            pass
    failed, left, done = receiver.spans
    assert (failed.failed, failed.status) == (True, "lost the worker decode-0")
    assert failed.attributes == {"error.type": "WorkerLost"}
    assert (left.failed, left.attributes) == (False, {"llmserve.outcome": "cancelled"})
    assert (done.failed, done.attributes) == (False, {})


async def test_an_endpoint_that_is_away_costs_a_count_and_a_line(
    receiver: OtlpReceiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    receiver.stop()
    async with tracing(receiver.endpoint) as traced:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})  # as vLLM does
        for _ in range(1024):
            traced.tracer.begin("a", SpanKind.SERVER, "").end()
        async with asyncio.timeout(10):
            while traced.spans("dropped") < 1024:  # noqa: ASYNC110 - a thread's
                await asyncio.sleep(0.01)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("llmserve")]
    assert len(lines) == 1
    assert f"spans are dropped, they cannot be sent to {receiver.endpoint}: " in lines[0]
    assert "Failed to export" in lines[0], "why"
    assert capfd.readouterr().err == ""


async def test_the_close_is_bounded(receiver: OtlpReceiver) -> None:
    receiver.stop()
    began = time.monotonic()
    async with tracing(receiver.endpoint, flush_seconds=0.5) as traced:
        traced.tracer.begin("a", SpanKind.SERVER, "").end()
    assert time.monotonic() - began < 8, "OpenTelemetry would take its 30 s"


async def test_an_environment_that_cannot_be_used_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER", "nobody")
    with pytest.raises(ManifestError, match=r"endpoint: https://there:4317 cannot be used: .*nobody"):
        async with tracing("https://there:4317"):
            pass


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
async def test_headers_that_cannot_be_read_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setenv(name, "authorization: Bearer secret")
    with pytest.raises(ManifestError, match=f"endpoint: {name} is not") as failed:
        async with tracing("http://127.0.0.1:1"):
            pass
    assert "secret" not in caplog.text + str(failed.value)


@pytest.mark.parametrize("name", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_EXPORTER_OTLP_TIMEOUT"])
async def test_a_number_that_is_none_fails_the_start_and_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "many")
    before = set(threading.enumerate())
    with pytest.raises(ManifestError, match="many"):
        async with tracing("http://127.0.0.1:1"):
            pass
    assert not [one for one in set(threading.enumerate()) - before if one.name == "llmserve-spans"]


async def test_off_is_nothing() -> None:
    async with tracing(None) as traced:
        assert traced.tracer.begin("a", SpanKind.SERVER, SAMPLED) is NO_SPAN
        assert NO_SPAN.traceparent == NO_SPAN.trace_id == trace_id_of("") == ""
        with ending(NO_SPAN) as span:
            span.set_attributes({})
            span.event("x", {})
    assert traced.spans("sent") == 0
