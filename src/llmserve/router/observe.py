"""What the controller decides, as metrics and as spans."""

from functools import cache

from llmserve.core.ids import RequestId
from llmserve.core.request import WorkerRole
from llmserve.metrics.router import RouterMetrics
from llmserve.router.controller import Controller
from llmserve.router.events import (
    CachedTokens,
    Effect,
    Exit,
    RequestEnded,
    RequestPlaced,
    RequestRefused,
    RequestStarted,
)
from llmserve.router.prefix.hash_check import HashState
from llmserve.router.prefix.lookup import PrefixLookup
from llmserve.router.sessions import RouterSession
from llmserve.router.workers.worker import WorkerState
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.tracing import words
from llmserve.tracing.base import Attributes, Span, SpanKind, Tracer


class MetricsRecorder:
    def __init__(self, metrics: RouterMetrics, controller: Controller, kvmanagers: int = 0) -> None:
        """kvmanagers: how many there are to be followed."""
        self._metrics = metrics
        # The metrics of these labels: prometheus_client takes longer to find one than to count.
        self._ended, self._refused = (
            cache(metrics.requests_total.labels),
            cache(metrics.refusals_total.labels),
        )
        self._queue_time, self._placements = (
            cache(metrics.queue_time_seconds.labels),
            cache(metrics.placements.placed_total.labels),
        )
        self._kinds, self._error_ratio = (
            cache(metrics.placements.kinds_total.labels),
            cache(metrics.prefixes.cached_tokens_error_ratio.labels),
        )
        self._watch(controller)
        self._watch_index(controller.prefixes, kvmanagers)

    def decided(self, seconds: float) -> None:
        self._metrics.placements.decision_seconds.observe(seconds)

    def record(self, effect: Effect) -> None:
        match effect:
            case RequestPlaced():
                self._placed(effect)
            case RequestRefused():
                self._ended(Exit(effect.outcome).value).inc()
                self._refused(type(effect.error).__name__).inc()
            case RequestStarted():
                self._started(effect)
            case RequestEnded():
                self._ended(effect.exit.value).inc()
                if effect.cached is not None:
                    self._compared(effect.cached)

    def _placed(self, placed: RequestPlaced) -> None:
        self._queue_time(placed.plan.decode.spec.model).observe(placed.queue_seconds)
        for member in (placed.plan.prefill, placed.plan.decode):
            if member is not None:
                self._placements(member.spec.worker_id, member.spec.role.value).inc()
        kind = "single" if placed.plan.prefill is None else "disaggregated"
        self._kinds(kind).inc()

    def _started(self, started: RequestStarted) -> None:
        metrics = self._metrics.placements
        metrics.first_token_seconds.observe(started.seconds)
        if started.predicted is not None:
            predicted = started.predicted.first_token_seconds
            metrics.predicted_first_token_seconds.observe(predicted)
            metrics.first_token_error_seconds.observe(abs(started.seconds - predicted))

    def _compared(self, cached: CachedTokens) -> None:
        self._metrics.prefixes.predicted_cached_tokens_total.inc(cached.predicted)
        self._metrics.prefixes.actual_cached_tokens_total.inc(cached.actual)
        share = abs(cached.predicted - cached.actual) / max(1, cached.prompt)
        self._error_ratio(cached.more.value).observe(share)

    def _watch_index(self, prefixes: PrefixLookup, kvmanagers: int) -> None:
        metrics, index = self._metrics.prefixes, prefixes.index
        metrics.blocks.set_function(lambda: index.blocks)
        metrics.kvmanagers.labels("followed").set_function(lambda: len(index.followed))
        metrics.kvmanagers.labels("away").set_function(lambda: kvmanagers - len(index.followed))
        for state in HashState:
            metrics.proof.labels(state.value).set_function(
                lambda state=state: prefixes.hash_check.state is state  # type: ignore[misc]
            )

    def _watch(self, controller: Controller) -> None:
        """Gauges are read from the state when they are scraped: nothing to keep in step."""
        self._metrics.queued_requests.set_function(lambda: controller.waiting_requests)
        self._metrics.running_requests.set_function(lambda: controller.running_requests)
        self._metrics.apiservers.set_function(lambda: controller.apiservers)
        self._metrics.members.slow_workers.set_function(lambda: len(controller.speeds.slow_reasons()))
        self._metrics.scheduler.watch(controller.scheduler_stats)
        self._metrics.members.worker_interruptions_total.watch_rows(
            lambda: [
                ((member.spec.worker_id, member.spec.role.value), member.interruptions)
                for member in controller.membership
            ]
        )
        for role in WorkerRole:
            for state in WorkerState:
                self._watch_workers(controller, role, state)

    def _watch_workers(self, controller: Controller, role: WorkerRole, state: WorkerState) -> None:
        def count() -> float:
            return sum(m.spec.role is role and m.state is state for m in controller.membership)

        self._metrics.members.workers.labels(role.value, state.value).set_function(count)


class QueueSpans:
    """One span for each request that asks for a place, until it has one or is refused. `asked` is called
    before the controller, `record` with every effect. A request that is not traced costs one look-up. A
    span belongs to a session: another session that uses the same id is refused, and the first request waits
    on."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._waiting: dict[tuple[RouterSession, RequestId], Span] = {}

    def asked(self, session: RouterSession, admit: router_pb2.Admit) -> None:
        """Called again for a request whose worker was lost, or whose apiserver lost its session."""
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
        span = self._tracer.begin(words.QUEUE, SpanKind.SERVER, admit.traceparent, attributes)
        if span.recording:
            self._waiting[session, request_id] = span

    def record(self, effect: Effect) -> None:
        if not self._waiting:
            return
        match effect:
            case RequestPlaced():
                self._placed(effect)
            case RequestRefused():
                if span := self._waiting.pop((effect.session, effect.request_id), None):
                    span.end(effect.error, {words.OUTCOME: effect.outcome.value})
            case RequestEnded() if (
                effect.exit is not Exit.REPLACED
            ):  # asked() has ended the one that is replaced
                self._end(effect.session, effect.request_id, effect.exit)

    def give_up(self) -> None:
        """Ends all spans: this router's term is over."""
        for span in self._waiting.values():
            span.end("this router leads no more")
        self._waiting.clear()

    def _placed(self, placed: RequestPlaced) -> None:
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

    def _end(self, session: RouterSession, request_id: RequestId, how: Exit) -> None:
        if span := self._waiting.pop((session, request_id), None):
            span.end(attributes={words.OUTCOME: how.value})
