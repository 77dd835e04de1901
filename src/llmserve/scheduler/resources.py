"""All budgets, and the limits they have now."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from llmserve.core.clock import Clock
from llmserve.core.ids import RequestId
from llmserve.scheduler.budgets import Budget, KvIoBudget, RequestBudget, TokenBudget
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.tenant_budgets import TenantLimits, TenantRateBudget, TenantRequestBudget


class BudgetSet:
    """Several budgets, called like one. cluster: used up for all at once. own: of each tenant."""

    def __init__(self, cluster: Sequence[Budget], own: Sequence[Budget]) -> None:
        self._cluster, self._own, self._all = cluster, own, (*cluster, *own)

    # -- is there room

    def fits(self, request: QueuedRequest) -> bool:
        return all(budget.fits(request) for budget in self._all)

    def full_in_cluster(self, request: QueuedRequest) -> Budget | None:
        """The first budget of the cluster that has no room for the request."""
        return _full(self._cluster, request)

    def full_of_tenant(self, request: QueuedRequest) -> Budget | None:
        """The first budget of the tenant that has no room for the request."""
        return _full(self._own, request)

    def used_up(self, request: QueuedRequest) -> list[str]:
        """Names of the budgets that have no room for the request."""
        return [budget.name for budget in self._all if not budget.fits(request)]

    def refusal(self, request: QueuedRequest) -> str:
        """Why the request can never fit, for people; empty: it can."""
        return next(filter(None, (budget.refusal(request) for budget in self._all)), "")

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


def _full(budgets: Sequence[Budget], request: QueuedRequest) -> Budget | None:
    return next((budget for budget in budgets if not budget.fits(request)), None)


@dataclass(frozen=True, slots=True)
class ClusterLimits:
    """Limits of the manifest. None: no limit; max_requests_in_flight None: as many as the workers hold."""

    max_requests_in_flight: int | None = None
    max_tokens_in_flight: int | None = None
    hbm_bytes: float | None = None
    kv_io_bytes_per_second: float | None = None
    tenants: TenantLimits = field(default_factory=TenantLimits)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the registered workers have. kv_bytes_per_token: bytes of the model; 0: unknown. hands_over:
    prefill and decode are different workers. widest_engine: most requests that one engine runs at once; 0:
    unknown."""

    requests: int = 0
    kv_bytes_per_token: float = 0.0
    hands_over: bool = False
    widest_engine: int = 0


class Resources:
    """cluster: used up for all at once. own: of each tenant."""

    def __init__(self, clock: Clock, limits: ClusterLimits) -> None:
        self.requests = RequestBudget(0)
        self.tokens = TokenBudget(
            clock, "tokens in flight", "budgets.max_tokens_in_flight", QueuedRequest.work_tokens
        )
        self.hbm = TokenBudget(clock, "KV tokens in HBM", "budgets.hbm_gb", QueuedRequest.context_tokens)
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
        self.cluster: Sequence[Budget] = (self.requests, self.tokens, self.hbm, self.kv_io)
        self.own: Sequence[Budget] = (self.tenant_requests, *self.tenant_rates)
        self._limits, self._capacity = limits, Capacity()
        self._apply()

    def set_limits(self, limits: ClusterLimits) -> None:
        """Takes nothing back: what exceeds a smaller limit ends in its own time."""
        self._limits = limits
        self._apply()

    def set_capacity(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._apply()

    @property
    def kv_token_price(self) -> float:
        """Tokens in flight that the KV of one token is worth; 0 unless both budgets have a limit."""
        tokens, held = self.tokens.limit_tokens, self.hbm.limit_tokens
        return tokens / held if tokens and held else 0.0

    @property
    def used_ratios(self) -> dict[str, float | None]:
        """Used share of each of the cluster's budgets, by name. 1: no room. None: no limit."""
        cluster = (self.requests, self.tokens, self.hbm, self.kv_io)
        return {budget.name: budget.used_ratio for budget in cluster}

    @property
    def kv_bytes_in_flight(self) -> float:
        """Bytes of the prompts and expected answers of all that runs."""
        return self.hbm.in_flight_tokens * self._capacity.kv_bytes_per_token

    def _most_choices(self) -> tuple[int, str]:
        """Most choices of one request, which decode on one engine, and the setting that limits them."""
        budget, engine = self._limits.max_requests_in_flight, self._capacity.widest_engine
        if budget is not None and (budget < engine or not engine):
            return budget, "budgets.max_requests_in_flight"
        return engine, "engine.max_decode_concurrency"

    def _apply(self) -> None:
        limits, capacity = self._limits, self._capacity
        most = limits.max_requests_in_flight
        self.requests.set_limit(capacity.requests if most is None else most, *self._most_choices())
        self.tokens.set_limit(limits.max_tokens_in_flight)
        hbm_bytes, per_token = limits.hbm_bytes, capacity.kv_bytes_per_token
        self.hbm.set_limit(int(hbm_bytes / per_token) if hbm_bytes is not None and per_token > 0 else None)
        self.kv_io.set_limit(limits.kv_io_bytes_per_second, per_token if capacity.hands_over else 0.0)
        for budget in (self.tenant_requests, *self.tenant_rates):
            budget.limits = limits.tenants


def _choices(request: QueuedRequest, output_tokens: int) -> int:
    return request.choices
