"""Requests from Admit to their end: offered, placed, evicted, over. Pure."""

from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.core.ids import RequestId, owner_of
from llmserve.core.request import Outcome
from llmserve.router.adapters.awaited import AwaitedAdapters
from llmserve.router.adapters.book import AdapterBook
from llmserve.router.events import (
    Admit,
    CachedTokens,
    Effect,
    Exit,
    HeldRequest,
    RequestEnded,
    RequestPlaced,
    RequestRefused,
    RequestStarted,
)
from llmserve.router.placement.adapter_room import AdapterRoom
from llmserve.router.placement.planner import NoPlan, PlacementRequest, Plan, Planner
from llmserve.router.prefix.lookup import PrefixLookup
from llmserve.router.sessions import PlacementHold, RequestEntry, RequestTable, RouterSession, Takeover, Work
from llmserve.router.workers.handover import MeasuredHandover
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.speed import WorkerSpeeds
from llmserve.scheduler.request import EvictedRequest, Fit, Queued, QueuedRequest, Rejected
from llmserve.scheduler.scheduler import Scheduler

_NO_PLACE = {NoPlan.BLOCKED: Fit.BLOCKED, NoPlan.NO_SLOT: Fit.NO_SLOT, NoPlan.FULL: Fit.FULL}


class Requests:
    """Takes the events of requests, and returns their effects. The other events end with `dispatch`, too: a
    worker or a request may have given a place back. entries, takeover and awaited are public for the
    Controller."""

    def __init__(
        self,
        clock: Clock,
        scheduler: Scheduler,
        planner: Planner,
        membership: ClusterMembership,
        prefixes: PrefixLookup,
        speeds: WorkerSpeeds,
        adapters: AdapterBook,
    ) -> None:
        self.entries, self.takeover = RequestTable(), Takeover(clock)
        self._clock, self._scheduler, self._queue = clock, scheduler, scheduler.queue
        self._keys = scheduler.keys
        self._planner, self._prefixes, self._speeds = planner, prefixes, speeds
        self._adapters = adapters
        self._membership, self._capacity_version = membership, membership.version
        self._room = AdapterRoom(membership)
        self.awaited = AwaitedAdapters(clock, membership, adapters.lifecycle)
        self._placed: list[Effect] = []  # since the last dispatch
        self._deferred: set[RequestId] = set()  # in this round

    # -- in

    def admit(self, session: RouterSession, admit: Admit) -> list[Effect]:
        """A request asks for a place. If it has one already, or waits for one, it gives that up first: its
        worker was lost."""
        entry = self.entries.get(admit.request_id)
        if entry and entry.session is not session:
            error = InvalidRequest(f"request id {admit.request_id} is in use")
            return [RequestRefused(session, admit.request_id, Outcome.REJECTED, error)]
        effects: list[Effect] = []
        if entry:
            effects = [self.end(admit.request_id, Exit.REPLACED), *self.dispatch()]
        effects += [*self._offer(session, admit), *self.dispatch()]
        return [*effects, *self._prefetch(admit)]

    def _offer(self, session: RouterSession, admit: Admit) -> list[Effect]:
        """Takes a request that has no entry into the queue, or refuses it."""
        if (refusal := self._refusal(admit)) is not None:
            return [RequestRefused(session, admit.request_id, Outcome.REJECTED, refusal)]
        ahead = self._queue.waiting_requests
        entry = RequestEntry(session, admit.placement, requests_ahead=ahead, prompt=admit.prompt)
        self._prefixes.look_up(entry)
        request = self._queued(admit, self._prefixes.best_cached_tokens(entry))
        self.entries.open(admit.request_id, entry)
        answer = self._queue.offer(request, self._place)
        if isinstance(answer, Rejected):
            self.entries.close(admit.request_id)
            self._waits_no_more(admit.request_id, entry)
            return [RequestRefused(session, admit.request_id, Outcome.REJECTED, answer.error)]
        self._keys.take(request, admit.limits, charged=admit.again)
        evicted = answer.evicted if isinstance(answer, Queued) else None
        return [self.evict(evicted)] if evicted else []

    def _refusal(self, admit: Admit) -> LLMServeError | None:
        """Returns why a request may not enter the queue, whatever the queue says."""
        unknown = self._adapters.refusal(admit.placement.model, admit.placement.adapter)
        if unknown is not None or admit.again:
            return unknown
        return self._keys.refusal(admit.limits, admit.choices)

    def _prefetch(self, admit: Admit) -> list[Effect]:
        """Asks for the blocks and the adapter of a request that waits."""
        entry = self.entries.get(admit.request_id)
        if entry is None or entry.hold:
            return []
        self.awaited.wait(admit.request_id, entry.placement)
        if not self._prefixes.prefetches:
            return []
        wait_seconds = self._queue.retry_after_seconds(self._queued(admit))
        return [*self._prefixes.prefetch(entry, owner_of(admit.tenant), wait_seconds)]

    def adopt(
        self,
        session: RouterSession,
        held: HeldRequest,
        hold: PlacementHold,
        *,
        charged: bool,
        again: bool = False,
    ) -> None:
        """Counts a request that an earlier router placed, or this one before its session broke (again).
        charged: its tenant has paid for it at the earlier one."""
        now = self._clock.now()
        self.entries.open(
            held.request_id, RequestEntry(session, PlacementRequest(held.model, adapter=held.adapter), hold)
        )
        request = QueuedRequest(
            held.request_id,
            held.tenant,
            arrived_at=now,
            deadline=now,
            prompt_tokens=held.prompt_tokens,
            max_output_tokens=held.max_output_tokens,
            choices=held.choices,
            charged=charged,
            model=held.model,
        )
        self._queue.adopt(request, held.output_tokens)
        self._keys.take(request, held.limits, held.output_tokens, charged=charged or again)

    # -- on

    def dispatch(self) -> list[Effect]:
        """Places the requests whose turn it is."""
        hopeless = self.follow_workers()
        if self._queue.waiting_requests:
            self._queue.dispatch(self._place_together, self._probe)
            self._deferred.clear()
        self.awaited.follow()
        placed, self._placed = self._placed, []
        return [*hopeless, *placed]

    def follow_workers(self) -> list[Effect]:
        """Adapts the limits when there are other workers than before."""
        if self._capacity_version == self._membership.version:
            return []
        self._capacity_version = self._membership.version
        hopeless = self._scheduler.set_capacities(self._membership.capacities())
        return [self.evict(eviction) for eviction in hopeless]

    def first_token(
        self, session: RouterSession, request_id: RequestId, age_seconds: float = 0.0
    ) -> list[Effect]:
        """The prefill of a request was over so long ago: its worker can take another. Idempotent."""
        entry = session.entries.get(request_id)
        if entry is None or entry.hold is None or entry.hold.work.first_token_at is not None:
            return []
        work = entry.hold.work
        started_at = self._happened_at(work, age_seconds)
        busy_seconds = entry.hold.first_token(started_at)
        return [*self._started(request_id, work, started_at, busy_seconds), *self.dispatch()]

    def _started(
        self, request_id: RequestId, work: Work, started_at: float, busy_seconds: float
    ) -> list[RequestStarted]:
        if (plan := work.plan) is None:
            return []
        seconds, predicted = started_at - work.placed_at, plan.predicted
        computing = busy_seconds - predicted.parts.load if predicted else None
        work.compute_seconds = seconds if computing is None else max(0.0, computing)
        if not (predicted and predicted.parts.adapter):  # the time of its load says nothing of computing
            computed_by, tokens = plan.prefill or plan.decode, plan.computed_tokens
            foreseen = predicted.parts.queue if predicted else 0.0  # a burst makes no worker slow
            self._speeds.prompt_computed(
                computed_by, tokens, max(busy_seconds, seconds - foreseen), computing
            )
        return [RequestStarted(request_id, seconds, predicted)]

    def progress(self, session: RouterSession, request_id: RequestId, output_tokens: int) -> list[Effect]:
        """A request has generated this many tokens since it was placed."""
        if request_id in session.entries:
            self._queue.correct(request_id, output_tokens)
            self._keys.used(request_id, output_tokens)
        return []

    # -- out

    def done(
        self,
        session: RouterSession,
        request_id: RequestId,
        outcome: Outcome,
        output_tokens: int,
        cached_tokens: int | None = None,
        handover_seconds: float | None = None,
        age_seconds: float = 0.0,
    ) -> list[Effect]:
        """A request is over, or no longer wanted. Ignores a request that this session does not hold: it was
        refused meanwhile. cached_tokens: prompt tokens that the engine found cached; None: it did not
        report them. handover_seconds: from prefill's token to decode's first one; None: nothing was handed
        over. age_seconds: for so long it has been over."""
        entry = session.entries.get(request_id)
        if entry is None:
            return []
        cached = self._prefixes.ended(entry, outcome, cached_tokens)
        if entry.hold and handover_seconds is not None:
            self._handed_over(entry.hold.work, entry.placement.prompt_tokens, handover_seconds)
        ended = self.end(request_id, Exit(outcome), output_tokens, cached, age_seconds)
        return [ended, *self.dispatch()]

    def end(
        self,
        request_id: RequestId,
        how: Exit,
        output_tokens: int = 0,
        cached: CachedTokens | None = None,
        age_seconds: float = 0.0,
    ) -> RequestEnded:
        """Ends a request that waits or runs. output_tokens: tokens of all its choices."""
        entry = self.entries.close(request_id)
        self._keys.release(request_id, output_tokens)
        hold = entry.hold
        if hold is None:
            self._waits_no_more(request_id, entry)
            self._queue.withdraw(request_id)
        else:
            ended_at = self._happened_at(hold.work, age_seconds)
            self._measure(hold.work, output_tokens // hold.work.choices, ended_at)
            hold.give_back(ended_at)
            self._queue.release(request_id, output_tokens)
        return RequestEnded(entry.session, request_id, how, cached)

    def expire(self) -> list[Effect]:
        """Evicts the requests that have waited for too long."""
        return [self.evict(eviction) for eviction in self._queue.expire()]

    def evict(self, eviction: EvictedRequest) -> RequestRefused:
        """Ends a request that the queue gave up. Missing workers are the reason, where some are missing."""
        request_id = eviction.request.request_id
        entry = self.entries.close(request_id)
        self._keys.release(request_id)
        self._waits_no_more(request_id, entry)
        error: LLMServeError = self._planner.missing_workers(entry.placement.model) or eviction.error
        return RequestRefused(entry.session, request_id, Outcome.EVICTED, error)

    # -- parts

    def _place_together(self, request: QueuedRequest) -> Fit:
        """Gives a request its place when its turn comes. The queue calls this. A request whose adapter no
        worker has loaded lets others of its tenant go first, until it is asked again in the round."""
        if request.adapter and request.request_id not in self._deferred and self._lets_others_pass(request):
            self._deferred.add(request.request_id)
            return Fit.DEFERRED
        return self._place(request)

    def _lets_others_pass(self, request: QueuedRequest) -> bool:
        waited = self._clock.now() - request.arrived_at
        placement, turns = self.entries[request.request_id].placement, self._scheduler.policy.adapters
        return waited < turns.packing_seconds and not self._room.loaded(placement)

    def _place(self, request: QueuedRequest) -> Fit:
        if self.takeover.settling:
            return Fit.FULL
        entry = self.entries[request.request_id]
        self._prefixes.look_up(entry)
        plan = self._planner.plan(entry.placement, request.expected_output_tokens // request.choices)
        if isinstance(plan, NoPlan):
            return self._no_place(entry, request, plan)
        self._placed.append(self._occupy(entry, request, plan))
        return Fit.PLACED

    def _probe(self, request: QueuedRequest) -> Fit:
        """What `_place` would answer. The queue asks this when a budget has no room for the request."""
        entry = self.entries[request.request_id]
        obstacle = self._planner.obstacle(entry.placement)
        return Fit.PLACED if obstacle is None else self._no_place(entry, request, obstacle)

    def _no_place(self, entry: RequestEntry, request: QueuedRequest, plan: NoPlan) -> Fit:
        """Says how the queue goes on without this request. One that has waited long for a slot of its adapter
        gets the next slot."""
        waited = self._clock.now() - request.arrived_at
        if plan is NoPlan.NO_SLOT and waited >= self._scheduler.policy.adapters.aging_seconds:
            self._room.make(entry.placement)
        return _NO_PLACE[plan]

    def _occupy(self, entry: RequestEntry, request: QueuedRequest, plan: Plan) -> RequestPlaced:
        prefetches = self.awaited.of(request.request_id, entry.placement)
        self._waits_no_more(request.request_id, entry)
        now = self._clock.now()
        kv_tokens = entry.placement.prompt_tokens + request.expected_output_tokens
        work = Work(plan, now, kv_tokens, choices=request.choices, adapter=entry.placement.adapter)
        entry.hold = PlacementHold(plan.prefill.slots if plan.prefill else None, plan.decode.slots, work)
        return RequestPlaced(
            entry.session,
            request.request_id,
            plan,
            queue_seconds=now - request.arrived_at,
            predicted_cached_tokens=self._prefixes.placed(entry, plan, owner_of(request.tenant)),
            requests_ahead=entry.requests_ahead,
            report=self._queue.report(request),
            prefetches=prefetches,
        )

    def _waits_no_more(self, request_id: RequestId, entry: RequestEntry) -> None:
        self._room.forgo(entry.placement)
        self.awaited.leave(request_id, entry.placement)

    def _handed_over(self, work: Work, prompt_tokens: int, added_seconds: float) -> None:
        """Prompts that share the steps of an engine say too little of what each of them took."""
        plan = work.plan
        if work.first_token_at is None or work.prompt is None or not work.prompt.alone:
            return
        if plan is None or plan.prefill is None or plan.handover is None:
            return
        measured = MeasuredHandover(
            plan.handover.mode, plan.computed_tokens, prompt_tokens, work.compute_seconds, added_seconds
        )
        self._speeds.handed_over(plan.prefill, plan.decode, measured)

    def _happened_at(self, work: Work, age_seconds: float) -> float:
        """When a placed request got so far. It is heard later, and cannot have been before what it follows,
        whatever the apiserver says."""
        earliest = work.placed_at if work.first_token_at is None else work.first_token_at
        return max(earliest, self._clock.now() - max(0.0, age_seconds))

    def _measure(self, work: Work, output_tokens: int, ended_at: float) -> None:
        """Reports the speed of a request that has ended, before its slots are given back. output_tokens:
        tokens of one choice."""
        if work.plan is None or work.first_token_at is None:
            return
        decode, seconds = work.plan.decode, ended_at - work.first_token_at
        running = (work.running_at_first_token + decode.slots.placed_requests) / 2
        known = running if work.predicted else None
        self._speeds.answer_generated(decode, output_tokens - 1, seconds, known)

    def _queued(self, admit: Admit, cached_tokens: int = 0) -> QueuedRequest:
        now = self._clock.now()
        timeout = (
            admit.timeout_seconds
            if admit.timeout_seconds > 0
            else self._scheduler.policy.queue_timeout_seconds
        )
        return QueuedRequest(
            request_id=admit.request_id,
            tenant=admit.tenant,
            arrived_at=now,
            deadline=now + timeout,
            prompt_tokens=admit.placement.prompt_tokens,
            max_output_tokens=admit.max_output_tokens,
            choices=admit.choices,
            priority=admit.priority,
            cached_tokens=cached_tokens,
            adapter=admit.placement.adapter,
            model=admit.placement.model,
        )
