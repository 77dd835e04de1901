"""What the scheduler tells of itself: tenants, budgets, and what is in flight; and how even shares are."""

from collections.abc import Iterable
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


def jain(shares: Iterable[float]) -> float:
    """Jain's index. 1: all alike; 1/n: one of n has it all. 1 when nobody has anything."""
    values = list(shares)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
