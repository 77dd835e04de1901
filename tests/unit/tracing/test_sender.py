"""Spans that come faster than they are taken."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from llmserve.metrics.cluster import TracingMetrics
from llmserve.tracing.sender import SpanSender

FULL = "spans are dropped, they cannot be sent to http://there:4317: they come faster than it takes them"


class Gated(SpanExporter):
    """Takes nothing until it is opened. raises: instead of the first batch."""

    def __init__(self, raises: Exception | None = None) -> None:
        self.opened, self.asked = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self._raises = raises

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.opened.wait(30)
        self.batches.append(len(spans))
        error, self._raises = self._raises, None
        if error:
            raise error
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.opened.set()


class Stepped(SpanExporter):
    """Takes one batch at each step."""

    def __init__(self) -> None:
        self._steps, self._over, self._asked = threading.Semaphore(0), threading.Event(), 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._asked += 1
        if not self._over.is_set():
            self._steps.acquire(timeout=30.0)
        return SpanExportResult.SUCCESS

    async def until(self, asked: int) -> None:
        """It was asked so many times."""
        async with asyncio.timeout(30):
            while self._asked < asked:  # noqa: ASYNC110 - a thread's
                await asyncio.sleep(0.001)

    def step(self) -> None:
        self._steps.release()

    def go_on(self) -> None:
        self._over.set()
        self._steps.release()

    def shutdown(self) -> None:
        self.go_on()


@dataclass(frozen=True)
class Made:
    sender: SpanSender
    provider: TracerProvider
    registry: CollectorRegistry

    def ended(self, spans: int) -> None:
        for _ in range(spans):
            self.provider.get_tracer("t").start_span("a").end()

    def spans(self, result: str) -> float:
        return self.registry.get_sample_value("trace_spans_total", {"result": result}) or 0.0


@asynccontextmanager
async def made(exporter: SpanExporter, queued_spans: int) -> AsyncIterator[Made]:
    """Batches are whole: none is sent before it is full, or the sender is closed."""
    registry, provider = CollectorRegistry(), TracerProvider(shutdown_on_exit=False)
    metrics = TracingMetrics(registry)
    sender = SpanSender(exporter, "http://there:4317", metrics, queued_spans, batch_seconds=60)
    provider.add_span_processor(sender)
    sender.start()
    try:
        yield Made(sender, provider, registry)
    finally:
        await sender.aclose(30)


async def test_what_does_not_fit_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmserve")
    exporter = Gated()
    async with made(exporter, queued_spans=600) as sent:
        sent.ended(512)  # a batch
        assert exporter.asked.wait(30)
        sent.ended(610)
        exporter.opened.set()
    assert exporter.batches == [512, 512, 88]
    assert (sent.spans("dropped"), sent.spans("sent")) == (10, 1112)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [FULL, "spans are sent to http://there:4317 again"]


async def test_an_overload_is_one_line_however_long_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmserve")
    exporter = Stepped()
    async with made(exporter, queued_spans=2048) as sent:
        sent.ended(512)
        for cycle in range(1, 5):  # a batch is taken, and more come than that
            await exporter.until(cycle)
            sent.ended(2048)
            exporter.step()
        exporter.go_on()
    assert sent.spans("dropped") > 1000
    assert sent.spans("dropped") + sent.spans("sent") == 512 + 4 * 2048
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [FULL, "spans are sent to http://there:4317 again"]


async def test_a_batch_that_cannot_be_encoded_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Gated(ValueError("metadata was invalid: secret"))
    exporter.opened.set()
    async with made(exporter, queued_spans=1100) as sent:
        sent.ended(1024)
        async with asyncio.timeout(30):  # a close does not wait for an endpoint that has just failed
            while len(exporter.batches) < 2:  # noqa: ASYNC110 - a thread's
                await asyncio.sleep(0.001)
    assert exporter.batches == [512, 512]
    assert sent.spans("sent") == 512
    assert "the exporter raised ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_close_while_the_queue_is_full_ends_the_thread() -> None:
    exporter = Gated()
    async with made(exporter, queued_spans=8) as sent:
        sent.ended(1)
        sent.ended(20)
        threads = [thread for thread in threading.enumerate() if thread.name == "llmserve-spans"]
        await sent.sender.aclose(0.05)
    assert not any(thread.is_alive() for thread in threads)
    assert sent.spans("dropped") + sent.spans("sent") == 21


async def test_what_ends_after_the_close_is_counted() -> None:
    async with made(Gated(), queued_spans=8) as sent:
        await sent.sender.aclose(1)
        sent.ended(3)
    assert sent.spans("dropped") == 3


async def test_the_close_leaves_opentelemetrys_log_as_it_was() -> None:
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")
    before = (list(logger.filters), list(logger.handlers), logger.propagate)
    async with made(Gated(), queued_spans=8):
        assert logger.filters != before[0]
    assert (list(logger.filters), list(logger.handlers), logger.propagate) == before
