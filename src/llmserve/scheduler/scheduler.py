"""The queues with everything they decide by. Every parameter can be replaced while they run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from llmserve.config.schema import Batches, Scheduling
from llmserve.core.clock import Clock
from llmserve.core.ids import TenantId
from llmserve.core.stats import BudgetStats, SchedulerStats
from llmserve.scheduler.accounts import Accounts
from llmserve.scheduler.admission import AdmissionQueue
from llmserve.scheduler.fairness import FairShare, TenantShares
from llmserve.scheduler.key_limits import KeyBudgets
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.ordering import AdapterTurns, Ordering, OutputEstimates, ShortestFirst
from llmserve.scheduler.queues import ModelQueues
from llmserve.scheduler.request import EvictedRequest
from llmserve.scheduler.resources import BudgetSet, ClusterLimits, Resources
from llmserve.scheduler.snapshot import ModelSnapshot, SchedulerSnapshot
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


class _ModelPart(NamedTuple):
    """What a model has of its own."""

    queue: AdmissionQueue
    fairness: FairShare
    estimates: OutputEstimates

    def snapshot(self) -> ModelSnapshot:
        return ModelSnapshot(self.fairness.snapshot(), self.estimates.snapshot())


class Scheduler:
    """queue, keys: used directly by the caller. set_policy and set_capacities return the requests that can
    never run now."""

    def __init__(self, clock: Clock, policy: Policy) -> None:
        self.policy = policy
        self._clock = clock
        self._resources = Resources(clock, policy.limits)
        self._budgets = BudgetSet(self._resources.cluster, self._resources.own)
        self._parts: dict[str, _ModelPart] = {}
        self._accounts, self._restored = Accounts(), SchedulerSnapshot()
        self.keys = KeyBudgets(clock)
        self.queue = ModelQueues(self._make_queue, self._budgets, self._resources.held_of_share)
        self._resources.shares.waiting = self.queue.models_in_want

    def __repr__(self) -> str:
        return f"<Scheduler {self.queue!r} {self._resources.requests!r}>"

    def set_policy(self, policy: Policy) -> list[EvictedRequest]:
        """Takes nothing back from what runs. What waits keeps its position within its tenant; more than
        max_queued_requests may wait until they have gone."""
        self.policy = policy
        self._resources.set_limits(policy.limits)
        for queue in self.queue:
            queue.max_queued = policy.max_queued_requests
            queue.refusals.longest_retry_seconds = policy.queue_timeout_seconds
            queue.ordering, queue.rounds.adapter_turns = policy.ordering, policy.adapters
        return self._changed()

    def set_capacities(self, capacities: Mapping[str, Capacity]) -> list[EvictedRequest]:
        """Called whenever the registered workers have changed. capacities: of each model that has any."""
        self._resources.set_capacities(capacities)
        return self._changed()

    def snapshot(self) -> SchedulerSnapshot:
        """State that the next leader needs and cannot learn from anyone else."""
        spent = {budget.name: budget.snapshot() for budget in self._resources.tenant_rates}
        spent |= self.keys.snapshot()
        kv_io = self._resources.kv_io.snapshot()
        if not self._parts:
            return replace(self._restored, spent_seconds=spent, kv_io_seconds=kv_io)
        models = {model: part.snapshot() for model, part in self._parts.items()}
        return SchedulerSnapshot.of_models({**self._restored.models, **models}, spent, kv_io)

    def restore(self, snapshot: SchedulerSnapshot) -> None:
        """Continues from another router's state. Called before anything is offered or adopted. A request
        that is adopted then, and ran at the time of the snapshot, is marked as charged."""
        assert not self._parts, self
        self._restored = snapshot
        for budget in self._resources.tenant_rates:
            budget.restore(snapshot.spent_seconds.get(budget.name, {}))
        self.keys.restore(snapshot.spent_seconds)
        self._resources.kv_io.restore(snapshot.kv_io_seconds)

    def stats(self) -> SchedulerStats:
        """Tenants and budgets as they are now."""
        ratios = self._resources.used_ratios
        own = [budget.name for budget in self._resources.own]
        return SchedulerStats(
            tenants=self._accounts.stats(self._shares().weight),
            budgets=tuple(
                BudgetStats(name, ratios.get(name), self._accounts.refused_by[name])
                for name in (*ratios, *own)
            ),
            queue_limit_requests=self.policy.max_queued_requests * max(1, len(self._parts)),
            tokens_in_flight=self._resources.tokens.in_flight_tokens,
            kv_bytes_in_flight=self._resources.kv_bytes_in_flight,
        )

    def _make_queue(self, model: str) -> AdmissionQueue:
        fairness, estimates, restored = FairShare(), OutputEstimates(), self._restored.of_model(model)
        fairness.restore(restored.fairness)
        estimates.restore(restored.output_tokens)
        queue = AdmissionQueue(
            self._clock,
            max_queued=self.policy.max_queued_requests,
            longest_retry_seconds=self.policy.queue_timeout_seconds,
            budgets=self._budgets,
            ordering=self.policy.ordering,
            turns=Turns(fairness),
            estimates=estimates,
        )
        queue.accounts, queue.rounds.adapter_turns = self._accounts, self.policy.adapters
        self._parts[model] = _ModelPart(queue, fairness, estimates)
        self._set_shares(model)
        return queue

    def _changed(self) -> list[EvictedRequest]:
        for model in self._parts:
            self._set_shares(model)
        return self.queue.limits_changed()

    def _set_shares(self, model: str) -> None:
        price = self._resources.kv_token_price(model)
        self._parts[model].fairness.shares = self._shares(price)

    def _shares(self, kv_token_price: float = 0.0) -> TenantShares:
        return TenantShares(self.policy.weights, kv_token_price, self.policy.background_weight)
