"""Counts what each tenant received and was refused, for the metrics. Decides nothing."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmserve.core.ids import TenantId
from llmserve.core.stats import TenantStats
from llmserve.scheduler.request import QueuedRequest

# Tenants have keys in the manifest, so there are few; but whoever talks to the router may name any.
MOST_TENANTS = 256
OTHERS = TenantId("(others)")


@dataclass(slots=True)
class _Account:
    waiting: int = 0
    running: int = 0
    dispatched: int = 0
    refused: int = 0
    queue_seconds: float = 0.0
    served_tokens: int = 0


class Accounts:
    """Tenants past the first MOST_TENANTS share one account."""

    def __init__(self) -> None:
        self._accounts: dict[TenantId, _Account] = {}
        self.refused_by: Counter[str] = Counter()  # requests, by each budget that had no room

    def queued(self, request: QueuedRequest) -> None:
        self._of(request).waiting += 1

    def left_queue(self, request: QueuedRequest) -> None:
        self._of(request).waiting -= 1

    def dispatched(self, request: QueuedRequest, now: float) -> None:
        account = self._of(request)
        account.dispatched += 1
        account.queue_seconds += now - request.arrived_at

    def started(self, request: QueuedRequest) -> None:
        """Called also for a request that an earlier router dispatched."""
        self._of(request).running += 1

    def ended(self, request: QueuedRequest, output_tokens: int) -> None:
        account = self._of(request)
        account.running -= 1
        account.served_tokens += request.work_tokens(output_tokens)

    def refused(self, request: QueuedRequest, used_up: Iterable[str]) -> None:
        """used_up: the names of the budgets that had no room for it."""
        self._of(request).refused += 1
        self.refused_by.update(used_up)

    def stats(self, weight: Callable[[TenantId], float]) -> tuple[TenantStats, ...]:
        return tuple(
            TenantStats(
                tenant,
                weight(tenant),
                account.waiting,
                account.running,
                account.dispatched,
                account.refused,
                account.queue_seconds,
                account.served_tokens,
            )
            for tenant, account in self._accounts.items()
        )

    def _of(self, request: QueuedRequest) -> _Account:
        account = self._accounts.get(request.tenant)
        if account is not None:
            return account
        tenant = request.tenant if len(self._accounts) < MOST_TENANTS else OTHERS
        return self._accounts.setdefault(tenant, _Account())
