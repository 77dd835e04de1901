"""What the scheduler tells of itself: tenants, budgets, and what is in flight."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TenantStats:
    """Totals since start, but waiting and running, which are now. refused: before the queue or out of it.
    queue_seconds: of the dispatched ones. served_tokens: computed prompt and answer of those that ended."""

    tenant: str
    weight: float
    waiting: int = 0
    running: int = 0
    dispatched: int = 0
    refused: int = 0
    queue_seconds: float = 0.0
    served_tokens: int = 0


@dataclass(frozen=True, slots=True)
class BudgetStats:
    """used_ratio: 1: there is no room; None: it has no limit. refused: requests, while it had no room."""

    name: str
    used_ratio: float | None
    refused: int


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    tenants: tuple[TenantStats, ...] = ()
    budgets: tuple[BudgetStats, ...] = ()
    queue_limit_requests: int = 0
    tokens_in_flight: int = 0
    kv_bytes_in_flight: float = 0.0
