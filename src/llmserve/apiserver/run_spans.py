"""The spans of a sequence at the apiserver: each question for a place, and each leg. What the router and the
workers do is below them, so that the trace is whole even where one of those died."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from llmserve.apiserver.router_link import AdmissionRefused
from llmserve.apiserver.worker_failed import WorkerFailed
from llmserve.core.errors import LLMServeError
from llmserve.core.request import EngineRequest
from llmserve.rpc.codec import decode_role
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo
from llmserve.tracing import words
from llmserve.tracing.base import Kind, Span, Tracer, ending


class RunSpans:
    """parent: of HTTP."""

    def __init__(self, tracer: Tracer, parent: Span) -> None:
        self._tracer, self._parent = tracer, parent.traceparent
        self._deadline: asyncio.Timeout | None = None
        self._late: LLMServeError | str = ""

    def limit(self, deadline: asyncio.Timeout, late: LLMServeError) -> None:
        """What the deadline cancels has failed with this error."""
        self._deadline, self._late = deadline, late

    @contextmanager
    def admit(self, admit: router_pb2.Admit) -> Iterator[None]:
        """Around the question, which gets its traceparent."""
        if not self._parent:
            yield
            return
        attributes = {words.REQUEST_ID: admit.request_id}
        with self._ending(self._tracer.begin(words.ADMIT, Kind.CLIENT, self._parent, attributes)) as span:
            admit.traceparent = span.traceparent
            try:
                yield
            except AdmissionRefused as refused:
                span.end(refused.error, {words.OUTCOME: refused.outcome.value})
                raise

    @contextmanager
    def leg(self, worker: WorkerInfo, request: EngineRequest) -> Iterator[EngineRequest]:
        """Around a leg: the request as it is to be sent. WorkerFailed is another leg's: that of prefill, for
        which decode waits here."""
        if not self._parent:
            yield request
            return
        attributes = {words.REQUEST_ID: request.request_id, words.WORKER: worker.worker_id}
        name = f"leg {decode_role(worker.role).value}"
        with self._ending(self._tracer.begin(name, Kind.CLIENT, self._parent, attributes)) as span:
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
