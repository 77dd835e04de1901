"""All budgets, and the limits they have now."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from llmserve.core.clock import Clock
from llmserve.core.ids import RequestId
from llmserve.scheduler.budgets import Budget, ClusterBudget, RequestBudget, TokenBudget
from llmserve.scheduler.kv_io import KvIoBudget
from llmserve.scheduler.models import NO_CAPACITY, Capacity, ModelShares
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.tenant_budgets import TenantLimits, TenantRateBudget, TenantRequestBudget


class BudgetSet:
    """Several budgets, called like one. cluster: of all tenants. own: of each tenant."""

    def __init__(self, cluster: Sequence[ClusterBudget], own: Sequence[Budget]) -> None:
        self._cluster, self._own, self._all = cluster, own, (*cluster, *own)

    # -- is there room

    def fits(self, request: QueuedRequest) -> bool:
        return all(budget.fits(request) for budget in self._all)

    def full_in_cluster(self, request: QueuedRequest) -> ClusterBudget | None:
        """The first budget of the cluster that has no room for the request. One that is full for all comes
        first."""
        full = [budget for budget in self._cluster if not budget.fits(request)]
        if not full:
            return None
        return min(full, key=lambda budget: not budget.full_for_all(request))

    def full_of_tenant(self, request: QueuedRequest) -> Budget | None:
        """The first budget of the tenant that has no room for the request."""
        for budget in self._own:
            if not budget.fits(request):
                return budget
        return None

    def used_up(self, request: QueuedRequest) -> list[str]:
        """Names of the budgets that have no room for the request."""
        return [budget.name for budget in self._all if not budget.fits(request)]

    def refusal(self, request: QueuedRequest) -> str:
        """Why the request can never fit, for people; empty: it can."""
        for budget in self._all:
            if refusal := budget.refusal(request):
                return refusal
        return ""

    def wait_seconds(self, request: QueuedRequest, ahead: int) -> float:
        """Time until the request fits, when this many requests like it, of its tenant, come first; 0:
        nothing is known."""
        return max(budget.wait(request, ahead).seconds for budget in self._all)

    # -- what requests hold

    def reserve(self, request: QueuedRequest) -> None:
        for budget in self._all:
            budget.reserve(request)

    def correct(self, request: QueuedRequest, output_tokens: int) -> None:
        for budget in self._all:
            budget.correct(request, output_tokens)

    def release(self, request: QueuedRequest, output_tokens: int) -> None:
        for budget in self._all:
            budget.release(request, output_tokens)

    def check_integrity(self, running: Set[RequestId]) -> None:
        """Raises AssertionError when one does not hold exactly what these requests hold."""
        for budget in self._all:
            budget.check_integrity(running)


@dataclass(frozen=True, slots=True)
class ClusterLimits:
    """Limits of the manifest. None: no limit; max_requests_in_flight None: as many as the workers of each
    model hold. shares: of models; others have 1 (ModelShares)."""

    max_requests_in_flight: int | None = None
    max_tokens_in_flight: int | None = None
    hbm_bytes: float | None = None
    kv_io_bytes_per_second: float | None = None
    tenants: TenantLimits = field(default_factory=TenantLimits)
    shares: Mapping[str, float] = field(default_factory=dict)


class Resources:
    """cluster: used up for all at once, or for one model. own: of each tenant. shares: the caller sets what
    waits."""

    def __init__(self, clock: Clock, limits: ClusterLimits) -> None:
        self.shares = ModelShares()
        self.requests = RequestBudget(None, self.shares, self._most_choices)
        self.tokens = TokenBudget(
            *(clock, "tokens in flight", "budgets.max_tokens_in_flight"),
            QueuedRequest.work_tokens,
            self.shares,
        )
        self.hbm = TokenBudget(
            *(clock, "KV tokens in HBM", "budgets.hbm_gb"), QueuedRequest.context_tokens, self.shares
        )
        self.kv_io = KvIoBudget(clock)
        self.tenant_requests = TenantRequestBudget(clock)
        self.tenant_rates = (
            TenantRateBudget(
                clock, "the tenant's requests per second", _choices, lambda limit: limit.requests_per_second
            ),
            TenantRateBudget(
                clock,
                "the tenant's tokens per second",
                QueuedRequest.work_tokens,
                lambda limit: limit.tokens_per_second,
            ),
        )
        self.cluster: Sequence[ClusterBudget] = (self.requests, self.tokens, self.hbm, self.kv_io)
        self.own: Sequence[Budget] = (self.tenant_requests, *self.tenant_rates)
        self._limits, self._capacities = limits, dict[str, Capacity]()
        self._apply()

    def set_limits(self, limits: ClusterLimits) -> None:
        """Takes nothing back: what exceeds a smaller limit ends in its own time."""
        self._limits = limits
        self._apply()

    def set_capacities(self, capacities: Mapping[str, Capacity]) -> None:
        """capacities: of each model with a worker. What KV a token of a model takes stays known when its
        workers are gone, because its requests still run."""
        known = {name: one.kv_bytes_per_token for name, one in self._capacities.items()}
        gone = {name: Capacity(kv_bytes_per_token=size) for name, size in known.items() if size}
        self._capacities = gone | dict(capacities)
        self._apply()

    def kv_token_price(self, model: str) -> float:
        """Tokens in flight that the KV of one token is worth; 0 unless both budgets have a limit."""
        tokens, held = self.tokens.limit_tokens(model), self.hbm.limit_tokens(model)
        return tokens / held if tokens and held else 0.0

    @property
    def used_ratios(self) -> dict[str, float | None]:
        """Used share of each of the cluster's budgets, by name. 1: no room. None: no limit."""
        cluster = (self.requests, self.tokens, self.hbm, self.kv_io)
        return {budget.name: budget.used_ratio for budget in cluster}

    @property
    def kv_bytes_in_flight(self) -> float:
        """Bytes of the prompts and expected answers of all that runs."""
        return sum(
            self.hbm.in_flight_of(model) * one.kv_bytes_per_token for model, one in self._capacities.items()
        )

    def held_of_share(self, model: str) -> float:
        """How much of its share of the budgets a model holds, of the budget of which it holds most."""
        held = max(budget.held_ratio(model) for budget in self.cluster)
        return held / self.shares.share(model)

    def _most_choices(self, model: str) -> tuple[int, str]:
        """Most choices of one request, which decode on one engine, and the setting that limits them."""
        budget, engine = self._limits.max_requests_in_flight, self._capacity(model).widest_engine
        if budget is not None and (budget < engine or not engine):
            return budget, "budgets.max_requests_in_flight"
        return engine, "engine.max_decode_concurrency"

    def _capacity(self, model: str) -> Capacity:
        return self._capacities.get(model, NO_CAPACITY)

    def _apply(self) -> None:
        limits, models = self._limits, self._capacities
        self.shares.shares = limits.shares
        kv_bytes = {name: one.kv_bytes_per_token for name, one in models.items()}
        handed_over = {name: kv_bytes[name] for name, one in models.items() if one.hands_over}
        engines = {name: one.requests for name, one in models.items()}
        self.requests.set_limit(limits.max_requests_in_flight, engines)
        self.tokens.set_limit(limits.max_tokens_in_flight)
        self.hbm.set_limit(limits.hbm_bytes, kv_bytes)
        self.kv_io.set_limit(limits.kv_io_bytes_per_second, handed_over)
        for budget in (self.tenant_requests, *self.tenant_rates):
            budget.limits = limits.tenants


def _choices(request: QueuedRequest, output_tokens: int) -> int:
    return request.choices
