"""Whatever happens in whatever order: nothing is lost or counted twice, and order holds."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.admission import AdmissionQueue
from llmserve.scheduler.budgets import RequestBudget
from llmserve.scheduler.decisions import Dispatched, Fit, Queued, Rejected
from llmserve.scheduler.fairness import FifoFairness
from llmserve.scheduler.ordering import FifoOrdering
from llmserve.scheduler.request import QueuedRequest


class AdmissionMachine(RuleBasedStateMachine):
    """A plain list is the model of the queue, a plain set that of what runs."""

    @initialize(limit=st.integers(0, 4), max_queued=st.integers(0, 6))
    def start(self, limit: int, max_queued: int) -> None:
        self.clock = VirtualClock()
        self.budget = RequestBudget(limit)
        self.max_queued = max_queued
        self.queue = AdmissionQueue(
            self.clock,
            max_queued=max_queued,
            longest_retry_seconds=60.0,
            budgets=(self.budget,),
            fairness=FifoFairness(),
            ordering=FifoOrdering(),
        )
        self.waiting: list[QueuedRequest] = []
        self.running: set[RequestId] = set()
        self.count = 0

    def _request(self, tenant: str, timeout: int) -> QueuedRequest:
        self.count += 1
        now = self.clock.now()
        return QueuedRequest(RequestId(f"r{self.count}"), TenantId(tenant), now, now + timeout)

    @rule(tenant=st.sampled_from("xyz"), timeout=st.integers(1, 9))
    def offer(self, tenant: str, timeout: int) -> None:
        request = self._request(tenant, timeout)
        answer = self.queue.offer(request, lambda _: Fit.PLACED)
        match answer:
            case Queued(ahead):
                assert ahead == len(self.waiting) < self.max_queued
                self.waiting.append(request)
            case Dispatched():
                assert self.budget.in_flight <= self.budget.limit_requests
                self.running.add(request.request_id)
            case Rejected():
                assert len(self.waiting) >= self.max_queued

    @rule(blocked=st.sets(st.integers(0, 8)))
    def dispatch(self, blocked: set[int]) -> None:
        before = len(self.running)
        barred = {r.request_id for index, r in enumerate(self.waiting) if index in blocked}
        done = self.queue.dispatch(lambda r: Fit.BLOCKED if r.request_id in barred else Fit.PLACED)
        room = max(0, self.budget.limit_requests - before)
        assert done == [r for r in self.waiting if r.request_id not in barred][:room]
        self.waiting = [r for r in self.waiting if r not in done]
        self.running |= {r.request_id for r in done}

    @rule()
    def adopt(self) -> None:
        request = self._request("x", 1)
        self.queue.adopt(request)
        self.running.add(request.request_id)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        assert self.queue.release(request_id, output_tokens=3)
        self.running.remove(request_id)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        assert self.queue.withdraw(request.request_id)
        self.waiting.remove(request)

    @rule(seconds=st.integers(0, 4))
    def expire(self, seconds: int) -> None:
        self.clock.advance(seconds)
        evicted = {eviction.request.request_id for eviction in self.queue.expire()}
        now = self.clock.now()
        assert evicted == {r.request_id for r in self.waiting if r.deadline <= now}
        self.waiting = [r for r in self.waiting if r.deadline > now]

    @rule(limit=st.integers(0, 4))
    def change_limit(self, limit: int) -> None:
        self.budget.set_limit(limit)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.queue.check_integrity()
        assert [r.request_id for r in self.queue.waiting()] == [r.request_id for r in self.waiting]
        assert self.queue.running_requests == self.budget.in_flight == len(self.running)
        assert self.queue.next_deadline() == min((r.deadline for r in self.waiting), default=None)
        assert 0.1 <= self.queue.retry_after_seconds() <= 60.0


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, database=None)
