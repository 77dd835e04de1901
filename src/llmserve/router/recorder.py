"""Turns what the controller decides into metrics."""

from llmserve.core.outcome import WorkerRole
from llmserve.metrics.router import RouterMetrics
from llmserve.router.controller import Controller
from llmserve.router.messages import CachedTokens, Effect, Ended, Exit, Placed, Refused, Started
from llmserve.router.prefixes import Prefixes
from llmserve.router.proof import ProofState
from llmserve.router.worker import WorkerState


class Recorder:
    def __init__(self, metrics: RouterMetrics, controller: Controller, kvmanagers: int = 0) -> None:
        """kvmanagers: how many there are to be followed."""
        self._metrics = metrics
        self._watch(controller)
        self._watch_index(controller.prefixes, kvmanagers)

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
                if effect.cached is not None:
                    self._compared(effect.cached)

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

    def _compared(self, cached: CachedTokens) -> None:
        self._metrics.predicted_cached_tokens_total.inc(cached.predicted)
        self._metrics.actual_cached_tokens_total.inc(cached.actual)
        share = abs(cached.predicted - cached.actual) / max(1, cached.prompt)
        self._metrics.cached_tokens_error_ratio.labels(cached.more.value).observe(share)

    def _watch_index(self, prefixes: Prefixes, kvmanagers: int) -> None:
        metrics, index = self._metrics, prefixes.index
        metrics.index_blocks.set_function(lambda: index.blocks)
        metrics.index_kvmanagers.labels("followed").set_function(lambda: len(index.followed))
        metrics.index_kvmanagers.labels("away").set_function(lambda: kvmanagers - len(index.followed))
        for state in ProofState:
            metrics.prefix_proof.labels(state.value).set_function(
                lambda state=state: prefixes.proof.state is state  # type: ignore[misc]
            )

    def _watch(self, controller: Controller) -> None:
        """Gauges are read from the state when they are scraped: nothing to keep in step."""
        self._metrics.queued_requests.set_function(lambda: controller.waiting_requests)
        self._metrics.running_requests.set_function(lambda: controller.running_requests)
        self._metrics.apiservers.set_function(lambda: controller.apiservers)
        self._metrics.slow_workers.set_function(lambda: len(controller.slow.workers()))
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
