"""The spans, metrics and record of one sequence."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.links.requests import AdmissionRefused
from llmserve.apiserver.request.context import WorkerFailed
from llmserve.core.errors import LLMServeError
from llmserve.core.request import EngineRequest, Outcome, PrefillStats
from llmserve.metrics.apiserver import ModelMetrics
from llmserve.rpc.codec import decode_role
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo
from llmserve.tracing import words
from llmserve.tracing.base import Span, SpanKind, Tracer, ending


class RunSpans:
    """The spans of one sequence: each admission, and each leg. parent: that of the HTTP request."""

    def __init__(self, tracer: Tracer, parent: Span) -> None:
        self._tracer, self._parent = tracer, parent.traceparent
        self._deadline: asyncio.Timeout | None = None
        self._late: LLMServeError | str = ""

    def limit(self, deadline: asyncio.Timeout, late: LLMServeError) -> None:
        """Sets the error of spans that this deadline cancels."""
        self._deadline, self._late = deadline, late

    @contextmanager
    def admit(self, admit: router_pb2.Admit) -> Iterator[None]:
        """Records a span around an admission, and gives the admission its traceparent."""
        if not self._parent:
            yield
            return
        attributes = {words.REQUEST_ID: admit.request_id}
        with self._ending(self._tracer.begin(words.ADMIT, SpanKind.CLIENT, self._parent, attributes)) as span:
            admit.traceparent = span.traceparent
            try:
                yield
            except AdmissionRefused as refused:
                span.end(refused.error, {words.OUTCOME: refused.outcome.value})
                raise

    @contextmanager
    def leg(self, worker: WorkerInfo, request: EngineRequest) -> Iterator[EngineRequest]:
        """Records a span around a leg. Yields the request as it is to be sent. A WorkerFailed is the failure
        of another leg: that of prefill, for which decode waits here."""
        if not self._parent:
            yield request
            return
        attributes = {words.REQUEST_ID: request.request_id, words.WORKER: worker.worker_id}
        name = f"leg {decode_role(worker.role).value}"
        with self._ending(self._tracer.begin(name, SpanKind.CLIENT, self._parent, attributes)) as span:
            try:
                yield replace(request, traceparent=span.traceparent)
            except WorkerFailed as other:
                span.end(attributes={words.OUTCOME: "cancelled", words.REASON: str(other)})
                raise

    @contextmanager
    def _ending(self, span: Span) -> Iterator[Span]:
        with ending(span):
            try:
                yield span
            except asyncio.CancelledError:
                if self._deadline is not None and self._deadline.expired():
                    span.end(self._late)
                raise


class RunStats:
    """started() and ended() exactly once, first_token() at most. str() is for the log. background: nobody
    waits for the request, so it counts in no time that users feel."""

    def __init__(self, metrics: ModelMetrics, record: SequenceRecord, *, background: bool) -> None:
        self._metrics, self._record, self._background = metrics, record, background
        self._started = self._first_token = self._ended = 0.0
        self._origin = ""
        self._prompt_tokens = self._cached_tokens = self._output_tokens = 0

    def __str__(self) -> str:
        text = f"seconds={self._ended - self._started:.3f} output_tokens={self._output_tokens}"
        if not self._origin:
            return text
        return (
            f"{text} first_token_seconds={self._first_token - self._started:.3f} origin={self._origin} "
            f"prompt_tokens={self._prompt_tokens} cached_tokens={self._cached_tokens}"
        )

    def started(self) -> None:
        self._started = time.monotonic()
        self._record.started(self._started)
        self._metrics.running_requests.inc()

    def first_token(self, origin: str, prompt_tokens: int, stats: PrefillStats) -> None:
        metrics = self._metrics
        self._first_token = time.monotonic()
        self._origin, self._prompt_tokens, self._cached_tokens = origin, prompt_tokens, stats.cached_tokens
        self._record.first_token(self._first_token, origin, prompt_tokens, stats)
        if not self._background:
            metrics.time_to_first_token_seconds.observe(self._first_token - self._started)
        metrics.first_token(origin)
        metrics.prompt_tokens_total.inc(prompt_tokens)
        metrics.cached_prompt_tokens_total.inc(self._cached_tokens)

    def ended(self, outcome: Outcome, output_tokens: int) -> None:
        metrics, now = self._metrics, time.monotonic()
        self._ended, self._output_tokens = now, output_tokens
        self._record.ended(now, outcome, output_tokens)
        metrics.running_requests.dec()
        metrics.ended(outcome)
        if not self._background:
            metrics.request_seconds.observe(now - self._started)
            if output_tokens > 1:
                metrics.inter_token_latency_seconds.observe((now - self._first_token) / (output_tokens - 1))
        metrics.output_tokens_total.inc(output_tokens)
