"""Who may use its turn: fair turns, without the tenants that cannot use one now, in rounds."""

import heapq
from bisect import bisect_right
from math import inf

from llmserve.core.clock import Clock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.budgets import Budget, ClusterBudget
from llmserve.scheduler.fairness import FairShare
from llmserve.scheduler.flows import FlowRound
from llmserve.scheduler.ordering import AdapterTurns
from llmserve.scheduler.request import Fit, QueuedRequest
from llmserve.scheduler.resources import BudgetSet
from llmserve.scheduler.wait_reasons import WaitReasons

# Times closer together than this count as one, so that few are remembered.
_GRAIN_SECONDS = 0.05
_NO_PLACE = "free seats of workers"


class VirtualTimes:
    """What virtual time was at each moment of the last seconds."""

    def __init__(self) -> None:
        self._since, self._times = [-inf], [0.0]

    def note(self, now: float, virtual_time: float, seconds: float) -> None:
        """Remembers the virtual time of now, for so many seconds."""
        if virtual_time == self._times[-1] or now < self._since[-1] + _GRAIN_SECONDS:
            return
        self._since.append(now)
        self._times.append(virtual_time)
        outdated = bisect_right(self._since, now - seconds) - 1
        if 2 * outdated > len(self._since):
            del self._since[:outdated], self._times[:outdated]

    def at(self, when: float) -> float:
        """The virtual time of that moment; the oldest one that is known, if it is not remembered any more."""
        return self._times[max(0, bisect_right(self._since, when) - 1)]


class Turns:
    """A tenant that has used up a budget of its own is suspended until one of its requests ends, or until its
    rate allows more; it costs nothing meanwhile, and it does not get the missed turns later.

    A tenant whose requests have no place now is passed over until the round ends. Later it gets the turns
    that it has missed in the last `owed_seconds`, because others have used what was due to it.

    begin_round -> (next -> dispatch | suspend | pass_over) ... -> end_round."""

    def __init__(self, fairness: FairShare) -> None:
        self.fairness = fairness
        self._past, self._now, self._owed_since = VirtualTimes(), 0.0, 0.0
        self._suspended: dict[TenantId, float | None] = {}  # until when; None: until something ends
        self._ready: list[tuple[float, TenantId]] = []
        self._passed_over: dict[TenantId, None] = {}  # in the order of their turns

    def __contains__(self, tenant: TenantId) -> bool:
        """Whether the tenant could use a turn now."""
        return tenant not in self._suspended and tenant not in self._passed_over

    def join(self, tenant: TenantId) -> None:
        self.fairness.join(tenant)

    def leave(self, tenant: TenantId) -> None:
        self._suspended.pop(tenant, None)
        self._passed_over.pop(tenant, None)
        self.fairness.leave(tenant)

    def begin_round(self, now: float, owed_seconds: float) -> None:
        self._past.note(now, self.fairness.virtual_time, owed_seconds)
        self._now, self._owed_since = now, self._past.at(now - owed_seconds)
        while (ready_at := self.next_ready()) is not None and ready_at <= now:
            self.released(self._ready[0][1])

    def next(self) -> TenantId | None:
        return self.fairness.next()

    def pass_over(self, tenant: TenantId) -> None:
        """The tenant has no turn until the round ends."""
        self._passed_over[tenant] = None
        self.fairness.suspend(tenant)

    def is_behind(self, tenant: TenantId, seconds: float) -> bool:
        """Whether the tenant's turn came more than so many seconds before this round, and others have had
        later ones since."""
        return self.fairness.is_behind(tenant, self._past.at(self._now - seconds))

    def suspend(self, tenant: TenantId, until: float | None) -> None:
        """The tenant has no turn until this time, or until one of its requests ends."""
        self._suspended[tenant] = until
        self.fairness.suspend(tenant)
        if until is not None:
            heapq.heappush(self._ready, (until, tenant))

    def released(self, tenant: TenantId) -> None:
        """A request of the tenant has ended: the tenant may have a turn again."""
        if tenant in self._suspended:
            del self._suspended[tenant]
            self.fairness.resume(tenant)

    def end_round(self) -> None:
        for tenant in self._passed_over:
            self.fairness.resume(tenant, self._owed_since)
        self._passed_over.clear()

    def restart(self) -> None:
        """The limits have changed: all tenants may have a turn again."""
        for tenant in list(self._suspended):
            self.released(tenant)

    def next_ready(self) -> float | None:
        """Time at which a suspended tenant returns without another event."""
        while self._ready and self._suspended.get(self._ready[0][1]) != self._ready[0][0]:
            heapq.heappop(self._ready)
        return self._ready[0][0] if self._ready else None

    def check_integrity(self, waiting: set[TenantId], running: set[RequestId]) -> None:
        self.fairness.check_integrity(waiting, running)
        assert self._suspended.keys() <= waiting, self._suspended
        assert not self._passed_over, "a round is under way"


class TurnRounds:
    """Each round: begin -> may_run and met, or pass_over, for whose turn it is -> end. The queue of a model
    has one, and calls what places requests itself.

    ended_by: what ended the last round; empty: all that could be placed was. budget_ready_at: time from which
    the budget that ended it has room without another event. holds_up_all: that budget is full whatever the
    model. lacks_budget: as far as is known, only budgets keep a request from its place."""

    def __init__(self, clock: Clock, budgets: BudgetSet, turns: Turns, wait_reasons: WaitReasons) -> None:
        self._clock, self._budgets, self._turns, self._wait_reasons = clock, budgets, turns, wait_reasons
        self._slots_owed_to: TenantId | None = None  # by the last round
        self.adapter_turns = AdapterTurns()
        self.ended_by = ""
        self.budget_ready_at: float | None = None
        self.holds_up_all = False
        self.lacks_budget = False

    def begin(self) -> None:
        self.held_up_by("")
        self._slots_owed_to, self.lacks_budget = None, False
        self._turns.begin_round(self._clock.now(), self.adapter_turns.aging_seconds)

    def end(self) -> None:
        self._turns.end_round()
        self._wait_reasons.all_wait_for(self.ended_by, self._clock.now())

    def held_up_by(self, what: str) -> None:
        """A round of another model was ended by this, which is full for all; empty: nothing has ended it."""
        self.ended_by, self.budget_ready_at, self.holds_up_all = what, None, False

    def may_run(self, request: QueuedRequest) -> bool:
        """Whether the request whose turn it is may look for a place. Suspends its tenant when one of the
        tenant's own budgets is used up."""
        return not self._suspended(request) and self.may_have_slot(request)

    def met(self, request: QueuedRequest, full: ClusterBudget | None, fit: Fit) -> Fit:
        """Notes how the request whose turn it is has fared. full: a budget of the cluster without room for
        it; then fit says whether it would have a place, and FULL ends the round."""
        if fit is not Fit.PLACED:
            self.ended_by = full.name if full else _NO_PLACE
        elif full is not None:
            self.ended_by = full.name
            self.lacks_budget = True
            self.budget_ready_at = self._ready_at(full, request)
            self.holds_up_all = full.full_for_all(request)
            return Fit.FULL
        return fit

    def pass_over(self, flow: FlowRound, tenant: TenantId) -> None:
        """No request of the tenant has a place now."""
        patience = self.adapter_turns.patience_seconds
        if self._slots_owed_to is None and flow.lacks_slot and self._turns.is_behind(tenant, patience):
            self._slots_owed_to = tenant
        self._turns.pass_over(tenant)

    def may_have_slot(self, request: QueuedRequest) -> bool:
        """False: slots are owed to another tenant, and the request has not waited for long yet."""
        if not request.adapter or self._slots_owed_to in (None, request.tenant):
            return True
        return self._clock.now() - request.arrived_at >= self.adapter_turns.aging_seconds

    def _suspended(self, request: QueuedRequest) -> bool:
        """Suspends the tenant when it has used up a budget of its own."""
        budget = self._budgets.full_of_tenant(request)
        what = budget.name if budget else ""
        self._wait_reasons.tenant_waits_for(request.tenant, what, self._clock.now())
        if budget is not None:
            self._turns.suspend(request.tenant, self._ready_at(budget, request))
        return budget is not None

    def _ready_at(self, budget: Budget, request: QueuedRequest) -> float | None:
        """Time at which the budget has room without another event; None: other requests must end first."""
        wait = budget.wait(request, 0)
        return self._clock.now() + wait.seconds if wait.sure else None
