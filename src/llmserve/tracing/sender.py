"""Sends ended spans to the endpoint, from a thread of its own; nobody waits for it.

Spans that come while the queue is full are dropped, and so is a batch that the endpoint did not take within
the exporter's time. Both are counted. The log has one line when dropping begins and one when it is over,
which is when the queue is nearly empty again, not between two batches of an overload.

The SDK's BatchSpanProcessor cannot replace this (decision 0020): it ignores the exporter's result, reports
what a full queue drops only to OpenTelemetry's own metrics and, every 20 s, to the log, and its shutdown
takes no time limit.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from llmserve.metrics.cluster import TracingMetrics

_log = logging.getLogger(__name__)

_QUEUED_SPANS = 8192
_BATCH_SPANS = 512
_BATCH_SECONDS = 1.0
_STOP_SECONDS = 1.0
_NEARLY_EMPTY = 1 / 8  # of the queue
_EXPORTER_LOGGER = "opentelemetry.exporter.otlp.proto.grpc.exporter"


class SpanSender(SpanProcessor):
    """Life: start (once) -> on_end ... -> aclose (idempotent). endpoint: its address, for the log.
    batch_seconds: how long a span waits for others to be sent with it."""

    def __init__(
        self,
        exporter: SpanExporter,
        endpoint: str,
        metrics: TracingMetrics,
        queued_spans: int = _QUEUED_SPANS,
        batch_seconds: float = _BATCH_SECONDS,
    ) -> None:
        self._exporter, self._endpoint, self._batch_seconds = exporter, endpoint, batch_seconds
        self._sent = metrics.spans_total.labels("sent").inc
        self._dropped = metrics.spans_total.labels("dropped").inc
        self._queue: queue.Queue[ReadableSpan | None] = queue.Queue(queued_spans)
        self._is_away = self._is_logged = False  # the endpoint; the line that says so
        self._closed = self._over = self._last = False
        self._thread = threading.Thread(target=self._run, name="llmserve-spans", daemon=True)
        self._reason = _Reason(self._thread)

    def start(self) -> None:
        self._reason.attach()
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None: ...

    def on_end(self, span: ReadableSpan) -> None:
        """Called on event loops, so it must not wait."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._closed:
            self._dropped()
            return
        try:
            self._queue.put_nowait(span)
        except queue.Full:
            self._dropped()
            self._warn("they come faster than it takes them")

    async def aclose(self, flush_seconds: float) -> None:
        """Sends what is queued within this time, and drops the rest. Does not wait for an endpoint that is
        away."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._end, 0.0 if self._is_away else flush_seconds)

    def _end(self, flush_seconds: float) -> None:
        until = time.monotonic() + flush_seconds
        if marked := self._mark_end(flush_seconds):
            self._thread.join(max(0.0, until - time.monotonic()))
        self._over = True
        self._exporter.shutdown()  # also ends the retries of a batch
        if marked or self._mark_end(_STOP_SECONDS):  # from now on the queue empties at once
            self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._drop_rest()
        self._reason.detach()

    def _mark_end(self, seconds: float) -> bool:
        """Queues the end mark; False when the queue was full all the time."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            return True
        return False

    def _drop_rest(self) -> None:
        """Drops the spans that ended while the sender was closed."""
        with contextlib.suppress(queue.Empty):
            while True:
                if self._queue.get_nowait() is not None:
                    self._dropped()

    # -- the thread

    def _run(self) -> None:
        while batch := self._next_batch():
            self._count(self._export(batch), len(batch))

    def _export(self, batch: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._over:
            return SpanExportResult.FAILURE
        try:
            return self._exporter.export(batch)
        except Exception as error:  # a span that cannot be encoded must not end the thread
            # Without its message: gRPC's says all headers, the secret ones too.
            self._reason.text = f"the exporter raised {type(error).__name__}"
            return SpanExportResult.FAILURE

    def _next_batch(self) -> list[ReadableSpan]:
        """Waits for a span, and then a little for more. An empty batch means that the sender is closed."""
        batch: list[ReadableSpan] = []
        until: float | None = None
        with contextlib.suppress(queue.Empty):
            while len(batch) < _BATCH_SPANS and not self._last:
                span = self._queue.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
                if span is None:
                    self._last = True
                    break
                batch.append(span)
                until = until or time.monotonic() + self._batch_seconds
        return batch

    def _count(self, result: SpanExportResult, spans: int) -> None:
        self._is_away = result is not SpanExportResult.SUCCESS
        if not self._is_away:
            self._sent(spans)
            if self._is_logged and self._queue.qsize() <= self._queue.maxsize * _NEARLY_EMPTY:
                self._is_logged = False
                _log.info("spans are sent to %s again", self._endpoint)
        else:
            self._dropped(spans)
            self._warn(self._reason.text)

    def _warn(self, reason: str) -> None:
        if not self._is_logged and not self._over:
            self._is_logged = True
            _log.warning("spans are dropped, they cannot be sent to %s: %s", self._endpoint, reason)


class _Reason(logging.Filter):
    """Keeps the reason why a batch was not taken. OpenTelemetry gives it only in its log, again with each
    retry; the sender logs it once. It is a filter because configuring logging again (as vLLM does) closes
    handlers, and it looks at the sender's own thread only, so that several senders do not disturb each
    other."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        self._thread, self.text = thread, "no reason was given"
        self._logger = logging.getLogger(_EXPORTER_LOGGER)

    def attach(self) -> None:
        # It stands before OpenTelemetry's own filter, which hides repeated lines.
        self._logger.filters.insert(0, self)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread.ident:
            return True
        if record.levelno >= logging.WARNING:
            self.text = record.getMessage()
        return False

    def detach(self) -> None:
        """Idempotent."""
        self._logger.removeFilter(self)
