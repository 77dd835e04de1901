"""The spans of a worker: one for each leg it runs, from the apiserver's question to the last output, and
below it the transfer that brought its KV."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from llmserve.core.errors import LLMServeError
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, EngineRequest, FinishReason, HandoverReport, WorkerRole
from llmserve.tracing import words
from llmserve.tracing.base import NO_SPAN, Attributes, Span, SpanKind, Tracer


@dataclass(slots=True)
class _Leg:
    span: Span
    output_tokens: int = 0


class LegSpans:
    """began() for each request that the engine is to run; then its outputs, up to the one that ends it, or
    one of failed() and aborted(). open_legs: the legs that are traced now, by request."""

    def __init__(self, tracer: Tracer, role: WorkerRole, worker_id: str, model: str) -> None:
        self._tracer, self._role = tracer, role
        self._worker: Attributes = {words.WORKER: worker_id, words.MODEL: model}
        self.open_legs: dict[RequestId, _Leg] = {}

    def began(self, request: EngineRequest) -> None:
        if not request.traceparent:
            return
        attributes = {
            **self._worker,
            words.REQUEST_ID: request.request_id,
            words.TENANT: request.tenant,
            words.INPUT_TOKENS: len(request.prompt_token_ids),
        }
        if request.adapter:
            attributes[words.ADAPTER] = request.adapter
        span = self._tracer.begin(self._role.value, SpanKind.SERVER, request.traceparent, attributes)
        if span.recording:
            self.open_legs[request.request_id] = _Leg(span)

    def outputs(self, outputs: Iterable[EngineOutput]) -> None:
        """Called with the outputs of each step, of all requests, while any leg is open."""
        for output in outputs:
            if leg := self.open_legs.get(output.request_id):
                self._output(leg, output)

    def _output(self, leg: _Leg, output: EngineOutput) -> None:
        if output.token_ids and not leg.output_tokens:
            leg.span.event(words.FIRST_TOKEN, {})
        leg.output_tokens += len(output.token_ids)
        if output.prefill_stats is not None:
            leg.span.set_attributes(
                {
                    words.DEVICE_CACHED_TOKENS: output.prefill_stats.local_cached_tokens,
                    words.STORE_CACHED_TOKENS: output.prefill_stats.external_cached_tokens,
                    words.CACHED_TOKENS: output.prefill_stats.cached_tokens,
                }
            )
        if (load := output.adapter_load) is not None:
            leg.span.set_attributes(
                {words.ADAPTER_TIER: load.tier.value, words.ADAPTER_SECONDS: load.seconds}
            )
        if output.handover is not None:
            self._transfer(leg.span, output.handover)
        if output.finish_reason is not None:
            is_error = output.finish_reason is FinishReason.ERROR
            self._end(output.request_id, output.finish_reason, output.error if is_error else "")

    def failed(self, request_id: RequestId, error: LLMServeError) -> None:
        self._end(request_id, FinishReason.ERROR, error)

    def aborted(self, request_ids: Iterable[RequestId], reason: str) -> None:
        for request_id in request_ids:
            if leg := self.open_legs.get(request_id):
                leg.span.set_attributes({words.REASON: reason})
                self._end(request_id, FinishReason.ABORT)

    def release(self, traceparent: str) -> Span:
        """Begins the span of a lease that an apiserver gives back unused."""
        if not traceparent:
            return NO_SPAN
        return self._tracer.begin(words.RELEASE, SpanKind.SERVER, traceparent, self._worker)

    def _end(self, request_id: RequestId, reason: FinishReason, error: LLMServeError | str = "") -> None:
        if leg := self.open_legs.pop(request_id, None):
            attributes: Attributes = {
                words.OUTPUT_TOKENS: leg.output_tokens,
                words.FINISH_REASONS: (reason.value,),
            }
            leg.span.end(error, attributes)

    def _transfer(self, leg: Span, report: HandoverReport) -> None:
        """Records a transfer, which is over when it is reported."""
        ended = report.ended_unix or time.time()
        attributes: Attributes = {
            **self._worker,
            words.TRANSPORT: report.transport,
            words.TRANSFER_MODE: "push" if report.pushed else "pull",
            words.TRANSFER_BYTES: report.bytes,
            words.TRANSFER_SECONDS: report.seconds,
        }
        began = ended - report.seconds
        span = self._tracer.begin(words.TRANSFER, SpanKind.INTERNAL, leg.traceparent, attributes, began)
        for fallback in report.fallbacks:
            span.event(words.FALLBACK, {words.REASON: fallback})
        span.end(report.reason, at_unix=ended)
