"""Spans that come faster than they are taken."""

import logging
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from llmserve.metrics.tracing import TracingMetrics
from llmserve.tracing.sender import SpanSender


class Gated(SpanExporter):
    """Takes nothing until it is opened. raises: instead of the first batch."""

    def __init__(self, raises: Exception | None = None) -> None:
        self.opened, self.asked = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self._raises = raises

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.opened.wait(5)
        self.batches.append(len(spans))
        error, self._raises = self._raises, None
        if error:
            raise error
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.opened.set()


def made(exporter: Gated, queued_spans: int) -> tuple[SpanSender, TracerProvider, CollectorRegistry]:
    registry, provider = CollectorRegistry(), TracerProvider(shutdown_on_exit=False)
    sender = SpanSender(exporter, "http://there:4317", TracingMetrics(registry), queued_spans)
    provider.add_span_processor(sender)
    return sender, provider, registry


def ended(provider: TracerProvider, spans: int) -> None:
    for _ in range(spans):
        provider.get_tracer("t").start_span("a").end()


async def test_what_does_not_fit_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmserve")
    exporter = Gated()
    sender, provider, registry = made(exporter, queued_spans=600)
    ended(provider, 512)  # a batch
    assert exporter.asked.wait(5)
    ended(provider, 610)
    exporter.opened.set()
    await sender.aclose(5)
    assert exporter.batches == [512, 512, 88]
    assert registry.get_sample_value("trace_spans_total", {"result": "dropped"}) == 10
    assert registry.get_sample_value("trace_spans_total", {"result": "sent"}) == 1112
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "spans are dropped, they cannot be sent to http://there:4317: they come faster than it takes them",
        "spans are sent to http://there:4317 again",
    ]


async def test_a_batch_that_cannot_be_encoded_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Gated(ValueError("odd"))
    exporter.opened.set()
    sender, provider, registry = made(exporter, queued_spans=1100)
    ended(provider, 1024)
    await sender.aclose(5)
    assert exporter.batches == [512, 512]
    assert registry.get_sample_value("trace_spans_total", {"result": "sent"}) == 512
    assert "ValueError('odd')" in caplog.text
