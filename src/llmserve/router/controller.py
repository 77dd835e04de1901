"""The whole state of the router. Pure: each method takes one event and returns what follows.

Called from one thread; a method runs to its end before the next begins, so nothing is ever seen
half done. After every event the caller delivers the effects, compares `cluster_version`, and asks
`next_wake` when `tick` is to be called.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, LLMServeError, NoWorkerAvailable
from llmserve.core.ids import ApiserverId, RequestId, WorkerId
from llmserve.core.outcome import Outcome
from llmserve.core.request import EngineLoad
from llmserve.core.shares import SchedulerStats
from llmserve.router.filters import PlacementRequest
from llmserve.router.learner import Learner
from llmserve.router.membership import Membership
from llmserve.router.messages import Admit, Effect, Ended, Exit, Held, Incarnation, Placed, Refused, Started
from llmserve.router.plan import NoPlan, Plan, Planner
from llmserve.router.prefixes import Prefixes
from llmserve.router.session import Holding, Session, Ticket, Work
from llmserve.router.slow import SlowBook
from llmserve.router.worker import DrainOrder, Member, Seats, WorkerSpec
from llmserve.scheduler.decisions import Evicted, Fit, Queued, Rejected
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.resources import Capacity
from llmserve.scheduler.scheduler import Policy, Scheduler
from llmserve.scheduler.snapshot import SchedulerSnapshot


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """no_worker_grace_seconds: how long a request waits while a role it needs has no worker at all."""

    queue_timeout_seconds: float
    no_worker_grace_seconds: float


class Controller:
    def __init__(
        self,
        clock: Clock,
        limits: AdmissionLimits,
        *,
        membership: Membership,
        planner: Planner,
        scheduler: Scheduler,
        prefixes: Prefixes,
        learner: Learner,
        slow: SlowBook,
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._membership = membership
        self._planner = planner
        self._scheduler = scheduler
        self._queue = scheduler.queue
        self._prefixes = prefixes
        self._learner = learner
        self.slow = slow
        self._sessions: dict[ApiserverId, Session] = {}
        self._tickets: dict[RequestId, Ticket] = {}
        self._placed: list[Effect] = []
        self._settled_at = float("-inf")
        self._inherits = False
        self._told_by: set[ApiserverId] = set()
        self._seen_version = membership.version

    def __repr__(self) -> str:
        return f"<Controller apiservers={len(self._sessions)} {self._queue!r} {self._membership!r}>"

    @property
    def cluster_version(self) -> int:
        """Changes with what apiservers are to know of the cluster."""
        return self._membership.version

    @property
    def membership(self) -> Membership:
        """To look at, not to change."""
        return self._membership

    @property
    def prefixes(self) -> Prefixes:
        """To look at, not to change."""
        return self._prefixes

    @property
    def waiting_requests(self) -> int:
        return self._queue.waiting_requests

    @property
    def running_requests(self) -> int:
        return self._queue.running_requests

    @property
    def apiservers(self) -> int:
        return len(self._sessions)

    def scheduler_stats(self) -> SchedulerStats:
        """Tenants and budgets, now."""
        return self._scheduler.stats()

    def next_wake(self) -> float | None:
        """When tick has something to do, on the clock; None: not before the next event."""
        queue = self._queue
        settled = self._settled_at if self._settling() else None
        proof_due = self._prefixes.proof.next_due()
        times = (self._membership.next_expiry(), queue.next_deadline(), queue.next_turn(), proof_due, settled)
        return min((time for time in times if time is not None), default=None)

    # -- another router's term before this one

    def snapshot(self) -> SchedulerSnapshot:
        """What the next router is to know, and nobody else tells it."""
        return self._scheduler.snapshot()

    def take_over(self, snapshot: SchedulerSnapshot | None, settle_seconds: float) -> None:
        """Before any other event. Nothing is placed for this long: who ran and waited under the other router
        is to be counted first."""
        self._settled_at = self._clock.now() + settle_seconds
        if snapshot is not None:
            self._inherits = True
            self._scheduler.restore(snapshot)

    # -- sessions

    def open_session(self, apiserver_id: ApiserverId, held: Iterable[Held]) -> tuple[Session, list[Effect]]:
        """An apiserver says hello. Its older session, if that is still open, is closed first."""
        older = self._sessions.get(apiserver_id)
        effects = self.close_session(older) if older else []
        session = self._sessions[apiserver_id] = Session(apiserver_id)
        # What it held under the other router is in the snapshot. What it comes back with later is not.
        charged = self._inherits and apiserver_id not in self._told_by
        self._told_by.add(apiserver_id)
        for request in held:
            if request.request_id not in self._tickets:
                self._adopt(session, request, charged=charged)
        return session, effects

    def close_session(self, session: Session) -> list[Effect]:
        """The stream ended, however: all that it held is given back. Idempotent."""
        if self._sessions.get(session.apiserver_id) is session:
            del self._sessions[session.apiserver_id]
        ended: list[Effect] = [self._end(request_id, Exit.GIVEN_BACK) for request_id in list(session.tickets)]
        return ended + self._dispatch()

    # -- requests

    def admit(self, session: Session, admit: Admit) -> list[Effect]:
        """A request asks for a place. One that has a place, or waits for one, gives that up first:
        its worker was lost."""
        ticket = self._tickets.get(admit.request_id)
        if ticket and ticket.session is not session:
            error = InvalidRequest(f"request id {admit.request_id} is in use")
            return [Refused(session, admit.request_id, Outcome.REJECTED, error)]
        replaced: list[Effect] = (
            [self._end(admit.request_id, Exit.REPLACED), *self._dispatch()] if ticket else []
        )
        effects = [*replaced, *self._offer(session, admit), *self._dispatch()]
        return [*effects, *self._prefetch(admit)]

    def first_token(self, session: Session, request_id: RequestId) -> list[Effect]:
        """Prefill is over: its worker can take another. Idempotent."""
        ticket = session.tickets.get(request_id)
        if ticket is None or ticket.holding is None or ticket.holding.work.first_token_at is not None:
            return []
        now, work = self._clock.now(), ticket.holding.work
        self.slow.first_token(work)
        self._learner.first_token(ticket.holding, now)
        started = (
            [] if work.placed_at is None else [Started(request_id, now - work.placed_at, work.predicted)]
        )
        return [*started, *self._dispatch()]

    def progress(self, session: Session, request_id: RequestId, output_tokens: int) -> list[Effect]:
        """The request has generated this many tokens so far, since it was placed."""
        if request_id in session.tickets:
            self._queue.correct(request_id, output_tokens)
        return []

    def done(
        self,
        session: Session,
        request_id: RequestId,
        outcome: Outcome,
        output_tokens: int,
        cached_tokens: int | None = None,
    ) -> list[Effect]:
        """The request is over, or no longer wanted. Nothing for one that this session does not hold: it was
        refused meanwhile. cached_tokens: of its prompt, if an engine told."""
        if request_id not in session.tickets:
            return []
        cached = self._prefixes.ended(session.tickets[request_id], outcome, cached_tokens)
        ended = self._end(request_id, Exit(outcome), output_tokens)
        return [replace(ended, cached=cached), *self._dispatch()]

    # -- workers

    def register(self, spec: WorkerSpec) -> list[Effect]:
        """Errors: InvalidRequest, as Membership.register."""
        self._membership.register(spec)
        return self._dispatch()

    def heartbeat(
        self, worker_id: WorkerId, epoch: int, load: EngineLoad, *, draining: bool = False
    ) -> list[Effect]:
        """Errors: NotFound, as Membership.heartbeat."""
        self._membership.heartbeat(worker_id, epoch, load, draining=draining)
        return self._dispatch()

    def drain(self, worker_id: WorkerId, order: DrainOrder) -> tuple[Member, int]:
        """Returns the worker, and how many others of its role requests may go to.
        Errors: NotFound, as Membership.order."""
        member = self._membership.order(worker_id, order)
        peers = self._membership.available(member.spec.model, member.spec.role)
        return member, sum(peer is not member for peer in peers)

    def deregister(self, worker_id: WorkerId, epoch: int) -> list[Effect]:
        self._membership.deregister(worker_id, epoch)
        return self._dispatch()

    def worker_failed(
        self, worker_id: WorkerId, epoch: int, reason: str, *, stalled: bool = False
    ) -> list[Effect]:
        """stalled: it is there, and gave a request no output in time."""
        if stalled:
            self.slow.stalled(worker_id)
        self._membership.suspect(worker_id, epoch, reason)
        return []

    # -- time

    def tick(self) -> list[Effect]:
        """Does what is due: workers expire, requests are evicted."""
        self._membership.expire()
        self._prefixes.proof.look()
        hopeless = self._follow_membership()
        evicted = [self._evict(eviction) for eviction in self._queue.expire()]
        return [*hopeless, *evicted, *self._dispatch()]

    # -- parameters

    def reconfigure(self, limits: AdmissionLimits, policy: Policy, expiry_seconds: float) -> list[Effect]:
        """Other parameters from now on. What runs keeps its place, what waits its deadline."""
        self._limits = limits
        self._membership.set_expiry(expiry_seconds)
        hopeless = [self._evict(eviction) for eviction in self._scheduler.set_policy(policy)]
        return [*hopeless, *self._dispatch()]

    def check_integrity(self) -> None:
        """Raises AssertionError when anything is lost, or counted other than once."""
        self._queue.check_integrity()
        in_sessions = [request_id for session in self._sessions.values() for request_id in session.tickets]
        assert sorted(in_sessions) == sorted(self._tickets), self
        running = [ticket.holding for ticket in self._tickets.values() if ticket.holding]
        assert len(running) == self._queue.running_requests, self
        assert len(self._tickets) - len(running) == self._queue.waiting_requests, self
        held = [seats for holding in running for seats in holding.seats()]
        for seats in {*held, *(member.seats for member in self._membership)}:
            assert seats.placed_requests == held.count(seats), self

    # -- parts

    def _offer(self, session: Session, admit: Admit) -> list[Effect]:
        ahead = self._queue.waiting_requests
        ticket = Ticket(session, admit.placement, requests_ahead=ahead, prompt=admit.prompt)
        self._prefixes.look_up(ticket)
        request = self._queued(admit, self._prefixes.best_cached_tokens(ticket))
        self._open_ticket(admit.request_id, ticket)
        answer = self._queue.offer(request, self._place)
        if isinstance(answer, Rejected):
            self._close_ticket(admit.request_id)
            return [Refused(session, admit.request_id, Outcome.REJECTED, answer.error)]
        if isinstance(answer, Queued) and not self._membership.serves(admit.placement.model):
            self._queue.set_deadline(admit.request_id, self._deadline(request))
        evicted = answer.evicted if isinstance(answer, Queued) else None
        return [self._evict(evicted)] if evicted else []

    def _prefetch(self, admit: Admit) -> list[Effect]:
        """For one that has no place yet."""
        ticket = self._tickets.get(admit.request_id)
        if ticket is None or ticket.holding or not self._prefixes.prefetches:
            return []
        wait_seconds = self._queue.retry_after_seconds(self._queued(admit))
        return [*self._prefixes.prefetch(ticket, admit.tenant, wait_seconds)]

    def _queued(self, admit: Admit, cached_tokens: int = 0) -> QueuedRequest:
        now = self._clock.now()
        timeout = admit.timeout_seconds if admit.timeout_seconds > 0 else self._limits.queue_timeout_seconds
        return QueuedRequest(
            request_id=admit.request_id,
            tenant=admit.tenant,
            arrived_at=now,
            deadline=now + timeout,
            prompt_tokens=admit.placement.prompt_tokens,
            max_output_tokens=admit.max_output_tokens,
            priority=admit.priority,
            cached_tokens=cached_tokens,
        )

    def _adopt(self, session: Session, held: Held, *, charged: bool) -> None:
        now = self._clock.now()
        holding = Holding(self._seats(held.prefill) if held.prefill else None, self._seats(held.decode))
        self._open_ticket(held.request_id, Ticket(session, PlacementRequest(model=""), holding))
        self._queue.adopt(
            QueuedRequest(
                held.request_id,
                held.tenant,
                arrived_at=now,
                deadline=now,
                prompt_tokens=held.prompt_tokens,
                max_output_tokens=held.max_output_tokens,
                charged=charged,
            )
        )

    def _seats(self, worker: Incarnation) -> Seats:
        return self._membership.seats(worker.worker_id, worker.epoch)

    def _open_ticket(self, request_id: RequestId, ticket: Ticket) -> None:
        self._tickets[request_id] = ticket.session.tickets[request_id] = ticket

    def _close_ticket(self, request_id: RequestId) -> Ticket:
        ticket = self._tickets.pop(request_id)
        del ticket.session.tickets[request_id]
        return ticket

    def _end(self, request_id: RequestId, how: Exit, output_tokens: int = 0) -> Ended:
        holding = self._close_ticket(request_id).holding
        if holding is None:
            self._queue.withdraw(request_id)
        else:
            self.slow.ended(holding.work, output_tokens)
            self._learner.ended(holding, output_tokens, self._clock.now())
            self._queue.release(request_id, output_tokens)
        return Ended(request_id, how)

    def _evict(self, eviction: Evicted) -> Refused:
        request_id = eviction.request.request_id
        ticket = self._close_ticket(request_id)
        error: LLMServeError = eviction.error
        if missing := self._membership.missing_roles(ticket.placement.model):
            grace = self._limits.no_worker_grace_seconds
            error = NoWorkerAvailable(
                f"no {' and no '.join(missing)} worker of model {ticket.placement.model} is registered",
                retry_after_seconds=grace,
            )
        return Refused(ticket.session, request_id, Outcome.EVICTED, error)

    def _dispatch(self) -> list[Effect]:
        hopeless = self._follow_membership()
        if self._queue.waiting_requests:
            self._queue.dispatch(self._place)
        placed, self._placed = self._placed, []
        return [*hopeless, *placed]

    def _settling(self) -> bool:
        return self._clock.now() < self._settled_at

    def _place(self, request: QueuedRequest) -> Fit:
        if self._settling():
            return Fit.FULL
        ticket = self._tickets[request.request_id]
        self._prefixes.look_up(ticket)
        plan = self._planner.plan(ticket.placement, request.expected_output_tokens)
        if isinstance(plan, NoPlan):
            return Fit.BLOCKED if plan is NoPlan.BLOCKED else Fit.FULL
        self._seat(ticket, request, plan)
        return Fit.PLACED

    def _seat(self, ticket: Ticket, request: QueuedRequest, plan: Plan) -> None:
        now = self._clock.now()
        work = Work.of(plan, ticket.placement, request.expected_output_tokens, now)
        ticket.holding = Holding(plan.prefill.seats if plan.prefill else None, plan.decode.seats, work)
        placed = Placed(
            ticket.session,
            request.request_id,
            plan,
            queue_seconds=now - request.arrived_at,
            predicted_cached_tokens=self._prefixes.placed(ticket, plan),
            requests_ahead=ticket.requests_ahead,
            standing=self._queue.standing(request),
        )
        self._placed.append(placed)

    def _follow_membership(self) -> list[Effect]:
        """The limits and the deadlines depend on which workers there are."""
        if self._seen_version == self._membership.version:
            return []
        self._seen_version = self._membership.version
        hopeless = self._scheduler.set_capacity(self._capacity())
        for request in self._queue.waiting():
            self._queue.set_deadline(request.request_id, self._deadline(request))
        return [self._evict(eviction) for eviction in hopeless]

    def _capacity(self) -> Capacity:
        members = self._membership
        return Capacity(members.decode_capacity(), members.kv_bytes_per_token(), members.hands_over())

    def _deadline(self, request: QueuedRequest) -> float:
        """Sooner than the request's own while a role that it needs has no worker at all."""
        model = self._tickets[request.request_id].placement.model
        if self._membership.serves(model):
            return request.deadline
        gone_since = max(request.arrived_at, self._membership.unserved_since(model))
        return min(request.deadline, gone_since + self._limits.no_worker_grace_seconds)
