"""The spans of the router: one for each request that asks for a place, until it has one or gets none."""

from llmserve.core.ids import RequestId
from llmserve.router.messages import Effect, Ended, Exit, Placed, Refused
from llmserve.router.session import Session
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.tracing import words
from llmserve.tracing.base import Attributes, Kind, Span, Tracer


class QueueSpans:
    """asked() before the controller hears of it, then every effect. What is not traced costs a look-up.
    Spans are a session's: another one that asks with the same id is refused, and the first waits on."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._waiting: dict[tuple[Session, RequestId], Span] = {}

    def asked(self, session: Session, admit: router_pb2.Admit) -> None:
        """Also again: by a request whose worker was lost, or whose apiserver lost its session."""
        if not admit.traceparent:
            return
        attributes: Attributes = {
            words.REQUEST_ID: admit.request_id,
            words.TENANT: admit.tenant,
            words.MODEL: admit.model,
            words.INPUT_TOKENS: admit.prompt_tokens,
        }
        request_id = RequestId(admit.request_id)
        self._end(session, request_id, Exit.REPLACED)
        span = self._tracer.begin(words.QUEUE, Kind.SERVER, admit.traceparent, attributes)
        if span.recording:
            self._waiting[session, request_id] = span

    def record(self, effect: Effect) -> None:
        match effect:
            case Placed():
                self._placed(effect)
            case Refused():
                if span := self._waiting.pop((effect.session, effect.request_id), None):
                    span.end(effect.error, {words.OUTCOME: effect.outcome.value})
            case Ended() if effect.exit is not Exit.REPLACED:  # asked() has ended the one that is replaced
                self._end(effect.session, effect.request_id, effect.exit)

    def give_up(self) -> None:
        """The term of this router is over."""
        for span in self._waiting.values():
            span.end("this router leads no more")
        self._waiting.clear()

    def _placed(self, placed: Placed) -> None:
        span = self._waiting.pop((placed.session, placed.request_id), None)
        if span is None:
            return
        prefill, decode = placed.plan.prefill, placed.plan.decode
        attributes: dict[str, str | int | float] = {
            words.DECODE: decode.spec.worker_id,
            words.QUEUE_SECONDS: placed.queue_seconds,
            words.REQUESTS_AHEAD: placed.requests_ahead,
            words.PREDICTED_CACHED_TOKENS: placed.predicted_cached_tokens,
        }
        if prefill is not None:
            attributes[words.PREFILL] = prefill.spec.worker_id
        span.end(attributes=attributes)

    def _end(self, session: Session, request_id: RequestId, how: Exit) -> None:
        if span := self._waiting.pop((session, request_id), None):
            span.end(attributes={words.OUTCOME: how.value})
