"""Admission to one model: reject at once, or queue; dispatch in turn while budgets hold; evict at the
deadline.

Life of a request: offer -> (Rejected) or waiting -> dispatched | withdrawn | evicted; a dispatched
or adopted one is running -> released. Every exit is counted once and gives everything back.
"""

from collections.abc import Iterator, Set

from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.accounts import Accounts
from llmserve.scheduler.flows import FlowRound, Flows
from llmserve.scheduler.ordering import Ordering, OutputEstimates
from llmserve.scheduler.rate import ServiceRate
from llmserve.scheduler.refusals import Refusals
from llmserve.scheduler.request import (
    Dispatched,
    EvictedRequest,
    Fit,
    Place,
    Queued,
    QueuedRequest,
    QueueReport,
    Rejected,
    Tally,
    WaitingRequest,
    has_place,
)
from llmserve.scheduler.resources import BudgetSet
from llmserve.scheduler.turns import TurnRounds, Turns
from llmserve.scheduler.wait_reasons import WaitReasons


class AdmissionQueue:
    """One for each model (queues.py). The caller never offers or adopts an id that waits or runs already.

    budgets: budgets of the cluster and of each tenant. When one of the cluster is used up, nobody is
    dispatched: the request whose turn it is gets what others give back, so a large request is not
    overtaken, unless it has no place anyway. When a tenant's own is used up, only that tenant waits.
    longest_retry_seconds: see Refusals. accounts: may be replaced before use.

    A tenant whose requests wait for adapter slots lets others pass, and keeps its turn. When it is far
    behind, slots are owed to it: requests of others with an adapter wait until it has got some."""

    def __init__(
        self,
        clock: Clock,
        *,
        max_queued: int,
        longest_retry_seconds: float,
        budgets: BudgetSet,
        ordering: Ordering,
        turns: Turns,
        estimates: OutputEstimates | None = None,
    ) -> None:
        self.max_queued = max_queued
        self.ordering = ordering
        self._clock, self._turns = clock, turns
        self._budgets = budgets
        self._estimates = estimates or OutputEstimates()
        self._flows, self._rate, self._wait_reasons = Flows(), ServiceRate(), WaitReasons()
        self._running: dict[RequestId, QueuedRequest] = {}
        self.rounds = TurnRounds(clock, budgets, turns, self._wait_reasons)
        self.refusals = Refusals(
            clock, self._flows, self._budgets, turns.fairness, self._rate, longest_retry_seconds
        )
        self.tally = Tally()
        self.accounts = Accounts()

    def __repr__(self) -> str:
        return f"<AdmissionQueue waiting={self.waiting_requests} running={self.running_requests}>"

    @property
    def waiting_requests(self) -> int:
        return len(self._flows)

    @property
    def running_requests(self) -> int:
        return len(self._running)

    def waiting(self) -> Iterator[QueuedRequest]:
        """Yields all waiting requests in the order of arrival."""
        return (waiting.request for waiting in self._flows)

    # -- in

    def offer(self, request: QueuedRequest, place: Place) -> Dispatched | Queued | Rejected:
        """Takes a request into the queue. When the queue is full, the request evicts the last one of a
        tenant that has more of the queue than its share; otherwise it is rejected, unless it can run at
        once. Called when dispatch has nothing more to do, and followed by dispatch."""
        self.tally.offered += 1
        request.expected_output_tokens = self._estimates.expected(request)
        if refusal := self._budgets.refusal(request):
            return self._reject(request, InvalidRequest(refusal))
        ahead = len(self._flows)
        if ahead < self.max_queued:
            self._enqueue(request)
            return Queued(ahead)
        if (
            self._budgets.fits(request)
            and self.rounds.may_have_slot(request)
            and place(request) is Fit.PLACED
        ):
            self._enqueue(request)  # it is its tenant's turn
            self._dispatched(request)
            return Dispatched()
        victim = self._flows.over_its_share(request.tenant, self._turns.fairness.shares.weight)
        if victim is None:
            return self._reject(request, self.refusals.full(request))
        evicted = self._evict(victim, self.refusals.full(victim.request))
        self._enqueue(request)
        return Queued(ahead - 1, evicted)

    def adopt(self, request: QueuedRequest, output_tokens: int = 0) -> None:
        """Counts a request that an earlier router placed and that still runs. output_tokens: those that it
        has generated. They were expected: who has paid for the request has paid for them."""
        assert request.request_id not in self._running
        self.tally.adopted += 1
        request.expected_output_tokens = max(output_tokens, self._estimates.expected(request))
        self._start(request)

    # -- on

    def dispatch(self, place: Place, probe: Place = has_place) -> list[QueuedRequest]:
        """Offers requests to `place` in turn and returns those that it placed. A used-up budget ends the
        round, so that a large request is not overtaken for ever. probe: answers as `place` does, and takes
        nothing: a request that has no place holds nobody up."""
        dispatched: list[QueuedRequest] = []
        rounds: dict[TenantId, FlowRound] = {}
        self.rounds.begin()
        while (tenant := self._turns.next()) is not None:
            flow = rounds.get(tenant) or rounds.setdefault(tenant, FlowRound(self._flows[tenant]))
            waiting = flow.next()
            if waiting is None:
                self.rounds.pass_over(flow, tenant)
                continue
            fit = self._try(waiting.request, place, probe)
            if fit is Fit.FULL:
                break
            if fit is Fit.PLACED:
                self._dispatched(waiting.request)
                dispatched.append(waiting.request)
                flow.placed(waiting)
            elif fit is Fit.DEFERRED:
                flow.deferred(waiting)
            elif tenant in self._turns:
                flow.blocked(waiting, lacks_slot=fit is Fit.NO_SLOT)
        self.rounds.end()
        return dispatched

    def held_up_by(self, what: str) -> None:
        """A round of another model was ended by this, which is full for all."""
        self.rounds.held_up_by(what)
        if self._flows:
            self._wait_reasons.all_wait_for(what, self._clock.now())

    def correct(self, request_id: RequestId, output_tokens: int) -> None:
        """A running request has generated this many tokens so far. Ignores a request that does not run."""
        request = self._running.get(request_id)
        if request is None:
            return
        self._budgets.correct(request, output_tokens)
        self._turns.fairness.corrected(request, output_tokens)

    # -- out

    def release(self, request_id: RequestId, output_tokens: int = 0) -> QueuedRequest | None:
        """A running request is over, however it ended. Returns it; None: no such request runs. The caller
        tells the queues of all models, with tenant_released."""
        request = self._running.pop(request_id, None)
        if request is None:
            return None
        self.rounds.lacks_budget = True  # its place is free
        self._budgets.release(request, output_tokens)
        self._turns.fairness.ended(request, output_tokens)
        self._estimates.learn(request.tenant, output_tokens // request.choices)
        self._rate.departed(self._clock.now())
        self.accounts.ended(request, output_tokens)
        self.tally.released += 1
        return request

    def tenant_released(self, tenant: TenantId) -> None:
        """A request of the tenant has ended, of any model: it may have room in its own budgets again."""
        self._turns.released(tenant)

    def withdraw(self, request_id: RequestId) -> bool:
        """A waiting request is no longer wanted. False: no such request waits."""
        waiting = self._flows.get(request_id)
        if waiting is None:
            return False
        self._leave_queue(waiting)
        self.tally.withdrawn += 1
        return True

    def expire(self) -> list[EvictedRequest]:
        """Evicts the requests whose deadline has come."""
        due = self._flows.due(self._clock.now())
        return [self._evict(waiting, self.refusals.timeout(waiting.request)) for waiting in due]

    def limits_changed(self) -> list[EvictedRequest]:
        """Called when limits have changed: all tenants may have a turn again. Evicts requests that can
        never fit now."""
        self.rounds.lacks_budget = True
        self._turns.restart()
        refusals = [(waiting, self._budgets.refusal(waiting.request)) for waiting in self._flows]
        return [self._evict(waiting, InvalidRequest(refusal)) for waiting, refusal in refusals if refusal]

    def next_deadline(self) -> float | None:
        """Time at which expire has something to do; None while nothing waits."""
        return self._flows.next_deadline()

    def next_turn(self) -> float | None:
        """Time at which dispatch has something to do without another event; None: there is none."""
        times = (self.rounds.budget_ready_at, self._turns.next_ready())
        return min((time for time in times if time is not None), default=None) if self._flows else None

    # -- about

    def report(self, request: QueuedRequest) -> QueueReport:
        """Why a request had to wait. Called when its turn has come."""
        tenant, weight_of = request.tenant, self._turns.fairness.shares.weight
        used_up = self._wait_reasons.between(tenant, request.arrived_at, self._clock.now())
        weight = weight_of(tenant)
        return QueueReport(used_up, weight, weight / self._flows.weight_with(tenant, weight_of))

    def retry_after_seconds(self, request: QueuedRequest) -> float:
        """Expected time until a request like this has a turn."""
        return self.refusals.retry_after_seconds(request)

    def check_integrity(self) -> None:
        """Raises AssertionError when a request is lost or counted twice. The budgets are not checked: other
        queues have a part in them."""
        tally = self.tally
        left = tally.rejected + tally.withdrawn + tally.evicted + tally.dispatched
        assert len(self._flows) == tally.offered - left, self
        assert len(self._running) == tally.dispatched + tally.adopted - tally.released, self
        assert not any(waiting.request.request_id in self._running for waiting in self._flows), self
        self._flows.check_integrity()
        self._turns.check_integrity(self._flows.tenants(), set(self._running))

    @property
    def running_ids(self) -> Set[RequestId]:
        return self._running.keys()

    @property
    def wants_budget(self) -> bool:
        """Whether a waiting request could use room in the budgets, as far as is known. False: none had a
        place in the last round, and nothing of the model has ended since."""
        return self.rounds.lacks_budget and bool(self._flows)

    @property
    def holds_up_all(self) -> bool:
        """Whether a budget that ended the last round is full whatever the model."""
        return self.rounds.holds_up_all

    @property
    def ended_by(self) -> str:
        """What ended the last round; empty: all that could be placed was."""
        return self.rounds.ended_by

    # -- parts

    def _try(self, request: QueuedRequest, place: Place, probe: Place) -> Fit:
        """Looks for a place for the request whose turn it is."""
        if not self.rounds.may_run(request):
            return Fit.BLOCKED
        full = self._budgets.full_in_cluster(request)
        return self.rounds.met(request, full, place(request) if full is None else probe(request))

    def _enqueue(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._running, request
        if not self._flows:
            self.rounds.lacks_budget = True
            self._rate.backlog(True, self._clock.now())
        self.accounts.queued(request)
        if self._flows.add(request, self.ordering.key(request)):
            self._turns.join(request.tenant)

    def _leave_queue(self, waiting: WaitingRequest) -> None:
        tenant = waiting.request.tenant
        self.accounts.left_queue(waiting.request)
        if self._flows.remove(waiting):
            self._wait_reasons.gone(tenant)
            self._turns.leave(tenant)
        if not self._flows:
            self._rate.backlog(False, self._clock.now())
            self._wait_reasons.all_wait_for("", self._clock.now())

    def _dispatched(self, request: QueuedRequest) -> None:
        """A waiting request has its place."""
        waiting = self._flows.get(request.request_id)
        assert waiting is not None, request
        self._start(request)
        self._leave_queue(waiting)
        self.accounts.dispatched(request, self._clock.now())
        self.tally.dispatched += 1

    def _start(self, request: QueuedRequest) -> None:
        self._running[request.request_id] = request
        self.accounts.started(request)
        self._budgets.reserve(request)
        self._turns.fairness.dispatched(request)

    def _reject(self, request: QueuedRequest, error: LLMServeError) -> Rejected:
        self.accounts.refused(request, self._budgets.used_up(request))
        self.tally.rejected += 1
        return Rejected(error)

    def _evict(self, waiting: WaitingRequest, error: LLMServeError) -> EvictedRequest:
        self._leave_queue(waiting)
        self.accounts.refused(waiting.request, self._budgets.used_up(waiting.request))
        self.tally.evicted += 1
        return EvictedRequest(waiting.request, error)
