"""Whatever happens in whatever order: nothing is lost or counted twice, every budget is exact, and no
place that somebody could use stays empty."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import InvalidRequest, QueueFull
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.request import Dispatched, Fit, Queued, QueuedRequest, Rejected
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy, Scheduler
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits

maybe = st.none() | st.integers(1, 600)
tenant_limits = st.builds(
    TenantLimit,
    st.none() | st.integers(1, 3),
    st.none() | st.floats(0.2, 5),
    st.none() | st.integers(20, 500),
)
limits = st.builds(
    ClusterLimits,
    st.none() | st.integers(0, 4),
    maybe,
    maybe,
    maybe,
    st.builds(TenantLimits, tenant_limits, st.fixed_dictionaries({TenantId("x"): tenant_limits})),
    st.fixed_dictionaries({"m": st.sampled_from([0.3, 0.7, 1.0])}),
)
MODELS = ("m", "n")
policies = st.builds(
    Policy,
    max_queued_requests=st.integers(0, 6),
    weights=st.fixed_dictionaries({TenantId("x"): st.floats(0.1, 10)}),
    limits=limits,
)


def capacities(slots: tuple[int, int]) -> dict[str, Capacity]:
    return {
        model: Capacity(count, size, hands_over=True, widest_engine=count)
        for model, count, size in zip(MODELS, slots, (1.0, 2.5), strict=True)
    }


slots_of_models = st.tuples(st.integers(0, 5), st.integers(0, 5))


class AdmissionMachine(RuleBasedStateMachine):
    """Plain dicts are the model of the queues and of what runs, with what it has generated. Requests are of
    two models."""

    @initialize(policy=policies, slots=slots_of_models)
    def start(self, policy: Policy, slots: tuple[int, int]) -> None:
        self.clock = VirtualClock()
        self.policy = policy
        self.scheduler = Scheduler(self.clock, policy)
        self.scheduler.set_capacities(capacities(slots))
        self.queue = self.scheduler.queue
        self.resources = self.scheduler._resources
        self.waiting: dict[RequestId, QueuedRequest] = {}
        self.running: dict[RequestId, int] = {}
        self.count = 0
        self.virtual_time = dict.fromkeys(MODELS, 0.0)

    def _waiting_of(self, model: str) -> list[QueuedRequest]:
        return [request for request in self.waiting.values() if request.model == model]

    def _request(
        self, model: str, tenant: str, timeout: int = 1, prompt: int = 1, most: int = 0, choices: int = 1
    ) -> QueuedRequest:
        self.count += 1
        now = self.clock.now()
        return QueuedRequest(
            RequestId(f"r{self.count}"),
            TenantId(tenant),
            now,
            now + timeout,
            prompt,
            most,
            prompt % 7 - 3,
            choices=choices,
            model=model,
        )

    def _place(self, request: QueuedRequest, barred: frozenset[RequestId] = frozenset()) -> Fit:
        """Asked only when every budget has room."""
        budgets = (*self.resources.cluster, *self.resources.own)
        assert all(budget.fits(request) for budget in budgets)
        return self._probe(request, barred)

    def _probe(self, request: QueuedRequest, barred: frozenset[RequestId]) -> Fit:
        return Fit.BLOCKED if request.request_id in barred else Fit.PLACED

    @rule(
        model=st.sampled_from(MODELS),
        tenant=st.sampled_from("xyz"),
        timeout=st.integers(1, 9),
        prompt=st.integers(0, 300),
        most=st.integers(0, 400),
        choices=st.integers(1, 4),
    )
    def offer(self, model: str, tenant: str, timeout: int, prompt: int, most: int, choices: int) -> None:
        request = self._request(model, tenant, timeout, prompt, most, choices)
        match self.queue.offer(request, self._place):
            case Queued(ahead, evicted):
                if evicted:
                    assert isinstance(evicted.error, QueueFull)
                    assert evicted.request.tenant != request.tenant
                    assert evicted.request.model == model
                    del self.waiting[evicted.request.request_id]
                assert ahead == len(self._waiting_of(model))
                self.waiting[request.request_id] = request
                assert evicted or ahead < self.policy.max_queued_requests
            case Dispatched():
                self.running[request.request_id] = 0
            case Rejected(error):
                if not isinstance(error, InvalidRequest):
                    assert len(self._waiting_of(model)) >= self.policy.max_queued_requests
                    assert 0.1 <= (error.retry_after_seconds or 0) <= 60.0

    @rule(blocked=st.sets(st.integers(0, 8)))
    def dispatch(self, blocked: set[int]) -> None:
        barred = frozenset(name for index, name in enumerate(self.waiting) if index in blocked)
        for request in self.queue.dispatch(
            lambda request: self._place(request, barred), lambda request: self._probe(request, barred)
        ):
            assert request.request_id not in barred
            del self.waiting[request.request_id]
            self.running[request.request_id] = 0

    @rule()
    def dispatch_all_there_is_room_for(self) -> None:
        self.dispatch(set())
        held_up = any(queue.holds_up_all for queue in self.queue)
        for model in MODELS:
            queue = self.queue.of(model)
            tenant = queue._turns.next()
            if tenant is None:
                for name in {request.tenant for request in self._waiting_of(model)}:
                    first = queue._flows[name][0].request
                    assert not all(budget.fits(first) for budget in self.resources.own)
            elif not held_up or queue.holds_up_all:
                head = queue._flows[tenant][0].request
                assert not all(budget.fits(head) for budget in self.resources.cluster)

    @rule(
        model=st.sampled_from(MODELS),
        tenant=st.sampled_from("xyz"),
        prompt=st.integers(0, 300),
        choices=st.integers(1, 4),
    )
    def adopt(self, model: str, tenant: str, prompt: int, choices: int) -> None:
        request = self._request(model, tenant, prompt=prompt, choices=choices)
        self.queue.adopt(request)
        self.running[request.request_id] = 0

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(0, 500))
    def correct(self, data: Any, tokens: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        self.running[request_id] += tokens
        self.queue.correct(request_id, self.running[request_id])

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        assert self.queue.release(request_id, self.running.pop(request_id))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.withdraw(request_id)
        del self.waiting[request_id]

    @rule(seconds=st.integers(0, 4))
    def expire(self, seconds: int) -> None:
        self.clock.advance(seconds)
        evicted = {eviction.request.request_id for eviction in self.queue.expire()}
        now = self.clock.now()
        assert evicted == {r.request_id for r in self.waiting.values() if r.deadline <= now}
        self.waiting = {name: r for name, r in self.waiting.items() if r.deadline > now}

    @rule()
    def sleep_until_the_next_turn(self) -> None:
        self.dispatch(set())
        if (ready_at := self.queue.next_turn()) is not None:
            assert ready_at > self.clock.now()
            self.clock.advance(ready_at - self.clock.now())

    @rule(policy=policies, slots=slots_of_models)
    def change(self, policy: Policy, slots: tuple[int, int]) -> None:
        self.policy = policy
        changed = (self.scheduler.set_policy(policy), self.scheduler.set_capacities(capacities(slots)))
        for evicted in (one for each in changed for one in each):
            assert isinstance(evicted.error, InvalidRequest)
            del self.waiting[evicted.request.request_id]

    @invariant()
    def nothing_is_lost(self) -> None:
        self.queue.check_integrity()
        for model in MODELS:
            assert list(self.queue.of(model).waiting()) == self._waiting_of(model)
        assert self.queue.waiting_requests == len(self.waiting)
        assert self.queue.running_requests == len(self.running)
        assert self.queue.next_deadline() == min((r.deadline for r in self.waiting.values()), default=None)

    @invariant()
    def virtual_time_never_goes_back(self) -> None:
        for model, before in self.virtual_time.items():
            self.virtual_time[model] = self.queue.of(model)._turns.fairness.virtual_time
            assert self.virtual_time[model] >= before

    def teardown(self) -> None:
        """When all has ended, nothing is held."""
        if not hasattr(self, "queue"):
            return
        for request_id in list(self.running):
            self.release_now(request_id)
        assert self.resources.tokens.in_flight_tokens == self.resources.hbm.in_flight_tokens == 0
        assert self.resources.requests.in_flight == 0

    def release_now(self, request_id: RequestId) -> None:
        assert self.queue.release(request_id, self.running.pop(request_id))
        self.queue.check_integrity()


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=80, stateful_step_count=30, deadline=None, database=None)
