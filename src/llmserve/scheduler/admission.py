"""Admission: reject at once, or queue; dispatch in turn while budgets hold; evict at the deadline.

Life of a request: offer -> (Rejected) or waiting -> dispatched | withdrawn | evicted; a dispatched
or adopted one is running -> released. Every exit is counted once and gives everything back.
"""

from collections.abc import Iterator, Sequence

from llmserve.core.clock import Clock
from llmserve.core.deadlines import Deadlines
from llmserve.core.errors import InvalidRequest, LLMServeError, QueueFull, QueueTimeout
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.accounts import Accounts
from llmserve.scheduler.budgets import Budget
from llmserve.scheduler.decisions import Dispatched, Evicted, Fit, Place, Queued, Rejected, Standing, Tally
from llmserve.scheduler.estimates import OutputEstimates
from llmserve.scheduler.flow import Flow
from llmserve.scheduler.hindrance import Hindrance
from llmserve.scheduler.ordering import Ordering
from llmserve.scheduler.rate import ServiceRate
from llmserve.scheduler.request import QueuedRequest, Waiting
from llmserve.scheduler.turns import Turns

# A client that comes back sooner costs more than it gains.
_SHORTEST_RETRY_SECONDS = 0.1
# Requests of one tenant that have no place now and are passed over for its later ones, in one round.
_MOST_PASSED_OVER = 32
_UNKNOWN = float("inf")
_NO_PLACE = "free seats of workers"


class AdmissionQueue:
    """One for the cluster. Its caller never offers or adopts an id that waits or runs already.

    budgets: when one of these is used up, nobody is dispatched: the request whose turn it is gets what
    others give back, so a large one is not overtaken. own_budgets: of each tenant; when one is used
    up, only its tenant waits.
    longest_retry_seconds caps Retry-After: by then all that waits now is served or evicted, so it
    is the usual queue timeout.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        max_queued: int,
        longest_retry_seconds: float,
        budgets: Sequence[Budget],
        ordering: Ordering,
        turns: Turns,
        own_budgets: Sequence[Budget] = (),
        estimates: OutputEstimates | None = None,
    ) -> None:
        self.max_queued = max_queued
        self.longest_retry_seconds = longest_retry_seconds
        self.ordering = ordering
        self._clock = clock
        self._budgets = budgets
        self._own_budgets = own_budgets
        self._turns = turns
        self._estimates = estimates or OutputEstimates()
        self._rate = ServiceRate()
        self._flows: dict[TenantId, Flow] = {}
        self._waiting: dict[RequestId, Waiting] = {}
        self._running: dict[RequestId, QueuedRequest] = {}
        self._deadlines: Deadlines[RequestId] = Deadlines()
        self._budget_ready_at: float | None = None  # when time alone lets the next request fit
        self._sequence = 0
        self._round_ended_by = ""  # what ended the last round
        self._hindrance = Hindrance()
        self._own_hindrance: dict[TenantId, Hindrance] = {}  # of tenants that wait
        self.tally = Tally()
        self.accounts = Accounts()

    def __repr__(self) -> str:
        return f"<AdmissionQueue waiting={self.waiting_requests} running={self.running_requests}>"

    @property
    def waiting_requests(self) -> int:
        return len(self._waiting)

    @property
    def running_requests(self) -> int:
        return len(self._running)

    def waiting(self) -> Iterator[QueuedRequest]:
        """All that wait, in the order of arrival."""
        return (waiting.request for waiting in self._waiting.values())

    # -- in

    def offer(self, request: QueuedRequest, place: Place) -> Dispatched | Queued | Rejected:
        """Takes a request into the queue, if there is room in it. One that finds none has the latest of
        a tenant evicted that has more of the queue than its share, or is refused, unless it need not
        wait. Called when dispatch has nothing more to do, and followed by it."""
        self.tally.offered += 1
        request = self._estimates.stamped(request)
        if refusal := self._refusal(request):
            return self._reject(request, InvalidRequest(refusal))
        ahead = len(self._waiting)
        if ahead < self.max_queued:
            self._enqueue(request)
            return Queued(ahead)
        if self._fits(request) and place(request) is Fit.PLACED:
            self._dispatched(request)
            return Dispatched()
        if (victim := self._over_its_share(request.tenant)) is None:
            return self._reject(request, self._full(request))
        evicted = self._evict(victim, self._full(victim.request))
        self._enqueue(request)
        return Queued(ahead - 1, evicted)

    def adopt(self, request: QueuedRequest) -> None:
        """Counts a request that runs already: placed by an earlier router."""
        assert request.request_id not in self._running
        self.tally.adopted += 1
        self._start(self._estimates.stamped(request))

    # -- on

    def dispatch(self, place: Place) -> list[QueuedRequest]:
        """Offers requests to `place` in turn and returns those it placed. A budget that is used up
        stops it, so that a large request is not overtaken for ever."""
        dispatched: list[QueuedRequest] = []
        passed_over: dict[TenantId, int] = {}  # of each tenant: its first ones have no place now
        self._round_ended_by = ""
        self._budget_ready_at = None
        self._turns.begin_round(self._clock.now())
        while (tenant := self._turns.next()) is not None:
            flow, index = self._flows[tenant], passed_over.get(tenant, 0)
            if index >= min(len(flow), _MOST_PASSED_OVER):
                self._turns.pass_over(tenant)
                continue
            waiting = flow[index]
            fit = self._try(waiting.request, place)
            if fit is Fit.FULL:
                break
            if fit is Fit.PLACED:
                self._dispatched(waiting.request)
                self._leave_queue(waiting)
                dispatched.append(waiting.request)
            elif tenant in self._turns:
                passed_over[tenant] = index + 1
        self._turns.end_round()
        self._hindrance.set(self._round_ended_by, self._clock.now())
        return dispatched

    def correct(self, request_id: RequestId, output_tokens: int) -> None:
        """A running request has generated this many tokens so far. Nothing for one that does not run."""
        request = self._running.get(request_id)
        if request is None:
            return
        for budget in (*self._budgets, *self._own_budgets):
            budget.correct(request, output_tokens)
        self._turns.fairness.corrected(request, output_tokens)

    # -- out

    def release(self, request_id: RequestId, output_tokens: int = 0) -> bool:
        """A running request is over, however it ended. False: no such request runs."""
        request = self._running.pop(request_id, None)
        if request is None:
            return False
        for budget in (*self._budgets, *self._own_budgets):
            budget.release(request, output_tokens)
        self._turns.fairness.ended(request, output_tokens)
        self._turns.released(request.tenant)
        self._estimates.learn(request.tenant, output_tokens)
        self._rate.departed(self._clock.now())
        self.accounts.ended(request, output_tokens)
        self.tally.released += 1
        return True

    def withdraw(self, request_id: RequestId) -> bool:
        """A waiting request is no longer wanted. False: no such request waits."""
        waiting = self._waiting.get(request_id)
        if waiting is None:
            return False
        self._leave_queue(waiting)
        self.tally.withdrawn += 1
        return True

    def set_deadline(self, request_id: RequestId, deadline: float) -> None:
        """Moves the deadline of a waiting request. Its deadline on arrival is that of the request."""
        assert request_id in self._waiting
        self._deadlines.put(request_id, deadline)

    def expire(self) -> list[Evicted]:
        """Evicts the requests whose deadline has come."""
        due = [self._waiting[request_id] for request_id in self._deadlines.take_due(self._clock.now())]
        return [self._evict(waiting, self._timeout(waiting.request)) for waiting in due]

    def limits_changed(self) -> list[Evicted]:
        """To be called when limits have: all may have a turn again; evicts those that can never fit now."""
        self._turns.restart()
        hopeless = [waiting for waiting in self._waiting.values() if self._refusal(waiting.request)]
        return [self._evict(one, InvalidRequest(self._refusal(one.request))) for one in hopeless]

    def next_deadline(self) -> float | None:
        """When expire has something to do; None while nothing waits."""
        return self._deadlines.next()

    def next_turn(self) -> float | None:
        """When time alone lets dispatch do something; None: not before something else happens."""
        times = (self._budget_ready_at, self._turns.next_ready())
        return min((time for time in times if time is not None), default=None) if self._waiting else None

    # -- about

    def standing(self, request: QueuedRequest) -> Standing:
        """Of a request whose turn it is: to be asked when it is placed."""
        now, tenant = self._clock.now(), request.tenant
        used_up = self._hindrance.between(request.arrived_at, now)
        if tenant in self._own_hindrance:
            used_up |= self._own_hindrance[tenant].between(request.arrived_at, now)
        weight = self._turns.fairness.shares.weight(tenant)
        return Standing(used_up, weight, weight / self._weight_with(tenant))

    def retry_after_seconds(self, request: QueuedRequest) -> float:
        """When one like this could expect a turn: at the recent rate of service, its tenant's share of
        it, and the rate at which what it needs is given back."""
        now = self._clock.now()
        own = len(self._flows.get(request.tenant, ()))
        share = self._turns.fairness.shares.weight(request.tenant) / self._weight_with(request.tenant)
        turns = min(len(self._waiting) + 1, (own + 1) / share)
        turn = self._rate.wait_seconds(turns, now, _UNKNOWN)
        room = max(budget.wait(request, own).seconds for budget in (*self._budgets, *self._own_budgets))
        wait = room if turn == _UNKNOWN and room else max(turn, room)
        return max(_SHORTEST_RETRY_SECONDS, min(wait, self.longest_retry_seconds))

    def check_integrity(self) -> None:
        """Raises AssertionError when a request is lost or counted twice."""
        tally = self.tally
        left = tally.rejected + tally.withdrawn + tally.evicted + tally.dispatched
        assert len(self._waiting) == tally.offered - left, self
        assert len(self._running) == tally.dispatched + tally.adopted - tally.released, self
        in_flows = [
            flow[index].request.request_id for flow in self._flows.values() for index in range(len(flow))
        ]
        assert sorted(in_flows) == sorted(self._waiting), self
        assert all(len(flow) for flow in self._flows.values()), "an empty flow is kept"
        assert not self._waiting.keys() & self._running.keys(), self
        self._deadlines.check_integrity(set(self._waiting))
        self._turns.check_integrity(set(self._flows), set(self._running))
        for budget in (*self._budgets, *self._own_budgets):
            budget.check_integrity(self._running.keys())

    # -- parts

    def _try(self, request: QueuedRequest, place: Place) -> Fit:
        """A place for the request whose turn it is. Suspends its tenant when that has used up its own."""
        for budget in self._own_budgets:
            if not budget.fits(request):
                self._own_hindrance.setdefault(request.tenant, Hindrance()).set(
                    budget.name, self._clock.now()
                )
                wait = budget.wait(request, 0)
                self._turns.suspend(request.tenant, self._clock.now() + wait.seconds if wait.sure else None)
                return Fit.BLOCKED
        if request.tenant in self._own_hindrance:
            self._own_hindrance[request.tenant].set("", self._clock.now())
        for budget in self._budgets:
            if not budget.fits(request):
                self._round_ended_by = budget.name
                wait = budget.wait(request, 0)
                self._budget_ready_at = self._clock.now() + wait.seconds if wait.sure else None
                return Fit.FULL
        fit = place(request)
        if fit is not Fit.PLACED:
            self._round_ended_by = _NO_PLACE
        return fit

    def _enqueue(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._waiting, request
        assert request.request_id not in self._running, request
        waiting = Waiting(self.ordering.key(request), self._sequence, request)
        self._sequence += 1
        if not self._waiting:
            self._rate.backlog(True, self._clock.now())
        self._waiting[request.request_id] = waiting
        self.accounts.queued(request)
        flow = self._flows.get(request.tenant)
        if flow is None:
            flow = self._flows[request.tenant] = Flow(request.tenant)
            self._turns.join(request.tenant)
        flow.add(waiting)
        self._deadlines.put(request.request_id, request.deadline)

    def _leave_queue(self, waiting: Waiting) -> None:
        request = waiting.request
        del self._waiting[request.request_id]
        self.accounts.left_queue(request)
        if not self._waiting:
            self._rate.backlog(False, self._clock.now())
            self._hindrance.set("", self._clock.now())
        flow = self._flows[request.tenant]
        flow.remove(waiting)
        if not flow:
            del self._flows[request.tenant]
            self._own_hindrance.pop(request.tenant, None)
            self._turns.leave(request.tenant)
        self._deadlines.drop(request.request_id)

    def _dispatched(self, request: QueuedRequest) -> None:
        self._start(request)
        self.accounts.dispatched(request, self._clock.now())
        self.tally.dispatched += 1

    def _start(self, request: QueuedRequest) -> None:
        self._running[request.request_id] = request
        self.accounts.started(request)
        for budget in (*self._budgets, *self._own_budgets):
            budget.reserve(request)
        self._turns.fairness.dispatched(request)

    def _reject(self, request: QueuedRequest, error: LLMServeError) -> Rejected:
        self.accounts.refused(request, self._used_up(request))
        self.tally.rejected += 1
        return Rejected(error)

    def _evict(self, waiting: Waiting, error: LLMServeError) -> Evicted:
        self._leave_queue(waiting)
        self.accounts.refused(waiting.request, self._used_up(waiting.request))
        self.tally.evicted += 1
        return Evicted(waiting.request, error)

    def _over_its_share(self, tenant: TenantId) -> Waiting | None:
        """The last request of the tenant that has the most of the queue for its weight; None when
        `tenant` with one more request would have no less."""
        if not self._flows:
            return None
        weight = self._turns.fairness.shares.weight
        most = max(self._flows.values(), key=lambda flow: len(flow) / weight(flow.tenant))
        mine = len(self._flows.get(tenant, ())) + 1
        if len(most) / weight(most.tenant) <= mine / weight(tenant):
            return None
        return most[len(most) - 1]

    def _weight_with(self, tenant: TenantId) -> float:
        """Of all tenants that wait, and this one."""
        return sum(map(self._turns.fairness.shares.weight, {*self._flows, tenant}))

    def _fits(self, request: QueuedRequest) -> bool:
        return all(budget.fits(request) for budget in (*self._budgets, *self._own_budgets))

    def _refusal(self, request: QueuedRequest) -> str:
        reasons = (budget.refusal(request) for budget in (*self._budgets, *self._own_budgets))
        return next(filter(None, reasons), "")

    def _used_up(self, request: QueuedRequest) -> list[str]:
        budgets = (*self._budgets, *self._own_budgets)
        return [budget.name for budget in budgets if not budget.fits(request)]

    def _reason(self, request: QueuedRequest) -> str:
        used_up = self._used_up(request)
        return f" (used up: {', '.join(used_up)})" if used_up else ""

    def _full(self, request: QueuedRequest) -> QueueFull:
        message = f"the queue is full: {len(self._waiting)} requests wait{self._reason(request)}"
        return QueueFull(message, retry_after_seconds=self.retry_after_seconds(request))

    def _timeout(self, request: QueuedRequest) -> QueueTimeout:
        waited = self._clock.now() - request.arrived_at
        message = f"waited {waited:.1f} s for a place{self._reason(request)}"
        return QueueTimeout(message, retry_after_seconds=self.retry_after_seconds(request))
