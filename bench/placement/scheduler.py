"""What a decision of the scheduler costs with a long queue, on one core and without the rest of the router.

A dispatch is one round: the tenant, its request, every budget, the charge. The baseline in the same run
is the same queue with one tenant and a hundredth of the requests.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.table import markdown
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.request import Fit, QueuedRequest
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy, Scheduler
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits

_RUNNING = 1_000
_DECISIONS = 20_000


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    queued: int
    tenants: int
    limits: ClusterLimits = field(default_factory=ClusterLimits)


_CASES = (
    _Case("1,000 queued, 1 tenant", 1_000, 1),
    _Case("100,000 queued, 100 tenants", 100_000, 100),
    _Case(
        "100,000 queued, 100 tenants, token and HBM budgets",
        100_000,
        100,
        ClusterLimits(max_tokens_in_flight=10**9, hbm_bytes=1e12, kv_io_bytes_per_second=1e15),
    ),
    _Case(
        "100,000 queued, 100 tenants, all at their own limit",
        100_000,
        100,
        ClusterLimits(tenants=TenantLimits(TenantLimit(max_requests_in_flight=_RUNNING // 200))),
    ),
    _Case("100,000 queued, 1 tenant", 100_000, 1),
)


def run() -> str:
    headings = ("case", "step", "per second", "p50 µs", "p99 µs", "max µs")
    return markdown(headings, [row for case in _CASES for row in _Load(case).rows()])


class _Load:
    """A queue that stays as long as it is: for each request that ends, one is dispatched and one comes."""

    def __init__(self, case: _Case) -> None:
        self._case = case
        self._rng = random.Random(3)
        self._clock = VirtualClock()
        policy = Policy(max_queued_requests=case.queued + _RUNNING + 1, limits=case.limits)
        self._scheduler = Scheduler(self._clock, policy)
        self._queue = self._scheduler.queue
        self._count = 0
        for _ in range(case.queued + _RUNNING):
            self._offer()
        self._scheduler.set_capacities({"": Capacity(_RUNNING, kv_bytes_per_token=100.0, hands_over=True)})
        self._running = self._queue.dispatch(_placed)

    def rows(self) -> list[tuple[object, ...]]:
        offers, decisions, queued = [], [], self._queue.waiting_requests
        for _ in range(_DECISIONS):
            ended = self._running.pop(self._rng.randrange(len(self._running)))
            self._queue.release(ended.request_id, self._rng.randint(1, 500))
            decisions.append(_seconds(self._decide))
            offers.append(_seconds(self._offer))
        assert self._queue.waiting_requests == queued
        self._queue.check_integrity()
        return [_row(self._case.name, "dispatch", decisions), _row("", "offer", offers)]

    def _decide(self) -> None:
        dispatched = self._queue.dispatch(_placed)
        assert len(dispatched) == 1
        self._running += dispatched

    def _offer(self) -> None:
        self._count += 1
        self._clock.advance(0.001)
        now = self._clock.now()
        request = QueuedRequest(
            request_id=RequestId(f"request-{self._count}"),
            tenant=TenantId(f"tenant-{self._rng.randrange(self._case.tenants)}"),
            arrived_at=now,
            deadline=now + 1e6,
            prompt_tokens=self._rng.randint(1, 8000),
            max_output_tokens=1000,
        )
        self._queue.offer(request, _placed)


def _placed(request: QueuedRequest) -> Fit:
    return Fit.PLACED


def _seconds(step: Callable[[], None]) -> float:
    """Of CPU: others on this machine do not count."""
    started = time.thread_time()
    step()
    return time.thread_time() - started


def _row(case: str, step: str, seconds: list[float]) -> tuple[object, ...]:
    ordered = sorted(seconds)
    micros = [ordered[int(len(ordered) * share)] * 1e6 for share in (0.5, 0.99)]
    rate = len(seconds) / sum(seconds)
    return (case, step, f"{rate:,.0f}", *(f"{value:.1f}" for value in micros), f"{ordered[-1] * 1e6:.0f}")
