"""Turns what the controller decides into metrics."""

from llmserve.core.outcome import WorkerRole
from llmserve.metrics.router import RouterMetrics
from llmserve.router.controller import Controller
from llmserve.router.messages import Effect, Ended, Exit, Placed, Refused
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
            case Ended():
                self._metrics.requests_total.labels(effect.exit.value).inc()

    def _placed(self, placed: Placed) -> None:
        self._metrics.queue_time_seconds.observe(placed.queue_seconds)
        for member in (placed.plan.prefill, placed.plan.decode):
            if member is not None:
                self._metrics.placements_total.labels(member.spec.worker_id, member.spec.role.value).inc()

    def _watch(self, controller: Controller) -> None:
        """Gauges are read from the state when they are scraped: nothing to keep in step."""
        self._metrics.queued_requests.set_function(lambda: controller.waiting_requests)
        self._metrics.running_requests.set_function(lambda: controller.running_requests)
        self._metrics.apiservers.set_function(lambda: controller.apiservers)
        self._metrics.scheduler.watch(controller.scheduler_stats)
        self._metrics.worker_interruptions_total.watch_rows(
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

        self._metrics.workers.labels(role.value, state.value).set_function(count)
