"""What one tenant may hold. A tenant that has used up its own budget waits; nobody else does."""

from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from llmserve.core.clock import Clock
from llmserve.core.ids import RequestId, TenantId, owner_of
from llmserve.scheduler.budgets import NO_WAIT, Wait, choices_refusal
from llmserve.scheduler.kv_io import Spends
from llmserve.scheduler.rate import ServiceRate
from llmserve.scheduler.request import QueuedRequest


@dataclass(frozen=True, slots=True)
class TenantLimit:
    """None: no limit."""

    max_requests_in_flight: int | None = None
    requests_per_second: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """each: limits of every tenant that is not named. A background flow that is not named has the limits of
    its tenant, and what it uses is counted apart."""

    each: TenantLimit = field(default_factory=TenantLimit)
    named: Mapping[TenantId, TenantLimit] = field(default_factory=dict)

    def of(self, tenant: TenantId) -> TenantLimit:
        if not self.named:
            return self.each
        return self.named.get(tenant) or self.named.get(owner_of(tenant), self.each)


class TenantRequestBudget:
    """Requests in flight of each tenant. Each choice counts as one."""

    name = "the tenant's requests in flight"

    def __init__(self, clock: Clock) -> None:
        self.limits = TenantLimits()
        self._clock = clock
        self._held: dict[RequestId, QueuedRequest] = {}
        self._count: Counter[TenantId] = Counter()
        self._rate: dict[TenantId, ServiceRate] = {}  # of those that have something in flight

    def __repr__(self) -> str:
        return f"<TenantRequestBudget {dict(self._count)}>"

    def fits(self, request: QueuedRequest) -> bool:
        limit = self.limits.of(request.tenant).max_requests_in_flight
        return limit is None or self._count[request.tenant] + request.choices <= limit

    def refusal(self, request: QueuedRequest) -> str:
        limit = self.limits.of(request.tenant).max_requests_in_flight
        return choices_refusal(request, limit or 0, "the tenant's max_requests_in_flight")

    def reserve(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._held, "reserved twice"
        self._held[request.request_id] = request
        self._count[request.tenant] += request.choices
        if request.tenant not in self._rate:
            self._rate[request.tenant] = ServiceRate()
            self._rate[request.tenant].backlog(True, self._clock.now())

    def correct(self, request: QueuedRequest, output_tokens: int) -> None:
        """Tokens do not change the number of requests."""

    def release(self, request: QueuedRequest, output_tokens: int) -> None:
        tenant = request.tenant
        self._count[tenant] -= self._held.pop(request.request_id).choices
        self._rate[tenant].departed(self._clock.now())
        if not self._count[tenant]:
            del self._count[tenant], self._rate[tenant]

    def wait(self, request: QueuedRequest, ahead: int) -> Wait:
        if self.fits(request):
            return NO_WAIT
        rate = self._rate.get(request.tenant)  # none when its limit is 0
        now = self._clock.now()
        return Wait(rate.wait_seconds(ahead + 1, now, float("inf")) if rate else float("inf"))

    def check_integrity(self, running: Set[RequestId]) -> None:
        assert self._held.keys() == running, self
        counted = Counter[TenantId]()
        for request in self._held.values():
            counted[request.tenant] += request.choices
        assert self._count == counted, self


class TenantRateBudget:
    """An amount of each tenant per second. amount_of(request, output_tokens): amount of a request. rate_of:
    the tenant's limit."""

    def __init__(
        self,
        clock: Clock,
        name: str,
        amount_of: Callable[[QueuedRequest, int], int],
        rate_of: Callable[[TenantLimit], float | None],
    ) -> None:
        self.name = name
        self.limits = TenantLimits()
        self._clock = clock
        self._amount_of = amount_of
        self._rate_of = rate_of
        self._spends = Spends()
        self._taken: dict[RequestId, int] = {}

    def __repr__(self) -> str:
        return f"<TenantRateBudget {self.name}>"

    def fits(self, request: QueuedRequest) -> bool:
        return self._seconds_left(request) == 0.0

    def refusal(self, request: QueuedRequest) -> str:
        return ""

    def reserve(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._taken, "reserved twice"
        amount = self._amount_of(request, request.expected_output_tokens)
        self._taken[request.request_id] = amount
        rate = self._rate(request)
        if rate and not request.charged:
            self._spends.take(request.tenant, amount / rate, self._clock.now())

    def correct(self, request: QueuedRequest, output_tokens: int) -> None:
        """Takes more when the answer is longer than expected."""
        amount = self._amount_of(request, output_tokens)
        if amount > self._taken[request.request_id]:
            self._settle(request, amount)

    def release(self, request: QueuedRequest, output_tokens: int) -> None:
        """Replaces the amount that was taken by the one that was used."""
        self._settle(request, self._amount_of(request, output_tokens))
        del self._taken[request.request_id]

    def snapshot(self) -> dict[TenantId, float]:
        """Seconds of its rate that each tenant has spent ahead; tenants that have saved up all are left
        out."""
        return self._spends.ahead_seconds(self._clock.now())

    def restore(self, ahead_seconds: Mapping[TenantId, float]) -> None:
        self._spends.restore(ahead_seconds, self._clock.now())

    def wait(self, request: QueuedRequest, ahead: int) -> Wait:
        rate, left = self._rate(request), self._seconds_left(request)
        if not rate or not left:
            return NO_WAIT
        each = self._amount_of(request, request.expected_output_tokens) / rate
        return Wait(left + ahead * each, sure=True)

    def check_integrity(self, running: Set[RequestId]) -> None:
        assert self._taken.keys() == running, self

    def _rate(self, request: QueuedRequest) -> float | None:
        return self._rate_of(self.limits.of(request.tenant))

    def _seconds_left(self, request: QueuedRequest) -> float:
        return self._spends.wait_seconds(request.tenant, self._clock.now()) if self._rate(request) else 0.0

    def _settle(self, request: QueuedRequest, amount: int) -> None:
        if rate := self._rate(request):
            more = (amount - self._taken[request.request_id]) / rate
            self._spends.take_more(request.tenant, more, self._clock.now())
        self._taken[request.request_id] = amount
