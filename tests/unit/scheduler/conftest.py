"""A queue with its clock and budget, and requests for it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.admission import AdmissionQueue
from llmserve.scheduler.budgets import RequestBudget
from llmserve.scheduler.fairness import FairShare
from llmserve.scheduler.ordering import Ordering, ShortestFirst
from llmserve.scheduler.request import Fit, QueuedRequest
from llmserve.scheduler.resources import BudgetSet
from llmserve.scheduler.turns import Turns

ARRIVAL = ShortestFirst(aging_seconds=0.0)


@dataclass
class Desk:
    """The caller of an AdmissionQueue: places whatever `blocked` does not name."""

    clock: VirtualClock
    budget: RequestBudget
    queue: AdmissionQueue
    blocked: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def request(self, name: str, tenant: str = "t", timeout: float = 60.0, tokens: int = 0) -> QueuedRequest:
        now = self.clock.now()
        return QueuedRequest(RequestId(name), TenantId(tenant), now, now + timeout, max_output_tokens=tokens)

    def offer(self, name: str, tenant: str = "t", timeout: float = 60.0, tokens: int = 0) -> object:
        return self.queue.offer(self.request(name, tenant, timeout, tokens), self.place)

    def place(self, request: QueuedRequest) -> Fit:
        self.asked.append(request.request_id)
        return Fit.BLOCKED if request.request_id in self.blocked else Fit.PLACED

    def dispatch(self) -> list[str]:
        return [request.request_id for request in self.queue.dispatch(self.place)]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


MakeDesk = Callable[..., Desk]


@pytest.fixture
def make_desk() -> MakeDesk:
    def make(limit: int = 2, max_queued: int = 8, ordering: Ordering | None = None) -> Desk:
        clock, budget = VirtualClock(100.0), RequestBudget(limit)
        queue = AdmissionQueue(
            clock,
            max_queued=max_queued,
            longest_retry_seconds=60.0,
            budgets=BudgetSet((budget,), ()),
            turns=Turns(FairShare()),
            ordering=ordering or ARRIVAL,
        )
        return Desk(clock, budget, queue)

    return make
