"""The queue with everything it decides by. Every parameter can be replaced while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmserve.config.schema import Batches, Scheduling
from llmserve.core.clock import Clock
from llmserve.core.ids import TenantId
from llmserve.core.stats import BudgetStats, SchedulerStats
from llmserve.scheduler.admission import AdmissionQueue
from llmserve.scheduler.fairness import FairShare, TenantShares
from llmserve.scheduler.ordering import AdapterTurns, Ordering, OutputEstimates, ShortestFirst
from llmserve.scheduler.request import EvictedRequest
from llmserve.scheduler.resources import BudgetSet, Capacity, ClusterLimits, Resources
from llmserve.scheduler.snapshot import SchedulerSnapshot
from llmserve.scheduler.turns import Turns

_DEFAULTS = Scheduling()


@dataclass(frozen=True, slots=True)
class Policy:
    """weights: weights of tenants; others have 1. background_weight: part of its tenant's weight that a
    background flow has."""

    max_queued_requests: int = _DEFAULTS.max_queued_requests
    queue_timeout_seconds: float = _DEFAULTS.queue_timeout_seconds
    ordering: Ordering = field(default_factory=ShortestFirst)
    weights: Mapping[TenantId, float] = field(default_factory=dict)
    limits: ClusterLimits = field(default_factory=ClusterLimits)
    adapters: AdapterTurns = field(default_factory=AdapterTurns)
    background_weight: float = Batches().weight


class Scheduler:
    """queue: used directly by the caller. set_policy and set_capacity return the requests that can never
    run now."""

    def __init__(self, clock: Clock, policy: Policy) -> None:
        self.policy = policy
        self._resources = Resources(clock, policy.limits)
        self._fairness = FairShare()
        self._estimates = OutputEstimates()
        self.queue = AdmissionQueue(
            clock,
            max_queued=policy.max_queued_requests,
            longest_retry_seconds=policy.queue_timeout_seconds,
            budgets=BudgetSet(self._resources.cluster, self._resources.own),
            ordering=policy.ordering,
            turns=Turns(self._fairness),
            estimates=self._estimates,
        )
        self.queue.adapter_turns = policy.adapters
        self._set_shares()

    def __repr__(self) -> str:
        return f"<Scheduler {self.queue!r} {self._fairness!r} {self._resources.requests!r}>"

    def set_policy(self, policy: Policy) -> list[EvictedRequest]:
        """Takes nothing back from what runs. What waits keeps its position within its tenant; more than
        max_queued_requests may wait until they have gone."""
        self.policy = policy
        self._resources.set_limits(policy.limits)
        self.queue.max_queued = policy.max_queued_requests
        self.queue.refusals.longest_retry_seconds = policy.queue_timeout_seconds
        self.queue.ordering, self.queue.adapter_turns = policy.ordering, policy.adapters
        return self._changed()

    def set_capacity(self, capacity: Capacity) -> list[EvictedRequest]:
        """Called whenever the registered workers have changed."""
        self._resources.set_capacity(capacity)
        return self._changed()

    def snapshot(self) -> SchedulerSnapshot:
        """State that the next leader needs and cannot learn from anyone else."""
        return SchedulerSnapshot(
            self._fairness.snapshot(),
            {budget.name: budget.snapshot() for budget in self._resources.tenant_rates},
            self._resources.kv_io.snapshot(),
            self._estimates.snapshot(),
        )

    def restore(self, snapshot: SchedulerSnapshot) -> None:
        """Continues from another router's state. Called before anything is offered or adopted. A request
        that is adopted then, and ran at the time of the snapshot, is marked as charged."""
        self._fairness.restore(snapshot.fairness)
        for budget in self._resources.tenant_rates:
            budget.restore(snapshot.spent_seconds.get(budget.name, {}))
        self._resources.kv_io.restore(snapshot.kv_io_seconds)
        self._estimates.restore(snapshot.output_tokens)

    def stats(self) -> SchedulerStats:
        """Tenants and budgets as they are now."""
        accounts, ratios = self.queue.accounts, self._resources.used_ratios
        own = [budget.name for budget in self._resources.own]
        return SchedulerStats(
            tenants=accounts.stats(self._fairness.shares.weight),
            budgets=tuple(
                BudgetStats(name, ratios.get(name), accounts.refused_by[name]) for name in (*ratios, *own)
            ),
            queue_limit_requests=self.queue.max_queued,
            tokens_in_flight=self._resources.tokens.in_flight_tokens,
            kv_bytes_in_flight=self._resources.kv_bytes_in_flight,
        )

    def _changed(self) -> list[EvictedRequest]:
        self._set_shares()
        return self.queue.limits_changed()

    def _set_shares(self) -> None:
        self._fairness.shares = TenantShares(
            self.policy.weights, self._resources.kv_token_price, self.policy.background_weight
        )
