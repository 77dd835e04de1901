"""Turns what the controller decides into metrics."""

from llmserve.core.outcome import WorkerRole
from llmserve.metrics.router import RouterMetrics
from llmserve.router.controller import Controller
from llmserve.router.messages import Effect, Ended, Exit, Placed, Refused, Started
from llmserve.router.worker import WorkerState


class Recorder:
    def __init__(self, metrics: RouterMetrics, controller: Controller) -> None:
        self._metrics = metrics
        self._watch(controller)

    def decided(self, seconds: float) -> None:
        self._metrics.decision_seconds.observe(seconds)

    def record(self, effect: Effect) -> None:
        match effect:
            case Placed():
                self._placed(effect)
            case Refused():
                self._metrics.requests_total.labels(Exit(effect.outcome).value).inc()
                self._metrics.refusals_total.labels(type(effect.error).__name__).inc()
            case Started():
                self._started(effect)
            case Ended():
                self._metrics.requests_total.labels(effect.exit.value).inc()

    def _placed(self, placed: Placed) -> None:
        self._metrics.queue_time_seconds.observe(placed.queue_seconds)
        for member in (placed.plan.prefill, placed.plan.decode):
            if member is not None:
                self._metrics.placements_total.labels(member.spec.worker_id, member.spec.role.value).inc()
        kind = "single" if placed.plan.prefill is None else "disaggregated"
        self._metrics.placement_kinds_total.labels(kind).inc()

    def _started(self, started: Started) -> None:
        self._metrics.first_token_seconds.observe(started.seconds)
        if started.predicted is not None:
            predicted = started.predicted.first_token_seconds
            self._metrics.predicted_first_token_seconds.observe(predicted)
            self._metrics.first_token_error_seconds.observe(abs(started.seconds - predicted))

    def _watch(self, controller: Controller) -> None:
        """Gauges are read from the state when they are scraped: nothing to keep in step."""
        self._metrics.queued_requests.set_function(lambda: controller.waiting_requests)
        self._metrics.running_requests.set_function(lambda: controller.running_requests)
        self._metrics.apiservers.set_function(lambda: controller.apiservers)
        for role in WorkerRole:
            for state in WorkerState:
                self._watch_workers(controller, role, state)

    def _watch_workers(self, controller: Controller, role: WorkerRole, state: WorkerState) -> None:
        def count() -> float:
            return sum(m.spec.role is role and m.state is state for m in controller.membership)

        self._metrics.workers.labels(role.value, state.value).set_function(count)
