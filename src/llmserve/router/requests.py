"""Gives a request its place, when the queue says that it is its turn. Pure.

Requests from Admit to their end: offered, placed, evicted, over. Pure."""

from llmserve.core.clock import Clock
from llmserve.core.errors import LLMServeError
from llmserve.core.ids import RequestId
from llmserve.core.outcome import Outcome
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
from llmserve.router.leader.takeover import Takeover
from llmserve.router.placement.planner import NoPlan, PlacementRequest, Plan, Planner
from llmserve.router.prefix.lookup import PrefixLookup
from llmserve.router.sessions import ApiserverSession, PlacementHold, RequestEntry, RequestTable, Work
from llmserve.router.workers.availability import Availability
from llmserve.router.workers.slow import Learner, SlowWorkers
from llmserve.scheduler.admission import AdmissionQueue
from llmserve.scheduler.request import EvictedRequest, Fit, Queued, QueuedRequest, Rejected


class Placer:
    """`place` is for the queue; `placed` tells what came of it."""

    def __init__(
        self,
        clock: Clock,
        queue: AdmissionQueue,
        entries: RequestTable,
        *,
        planner: Planner,
        prefixes: PrefixLookup,
        takeover: Takeover,
    ) -> None:
        self._clock, self._queue, self._entries = clock, queue, entries
        self._planner, self._prefixes, self._takeover = planner, prefixes, takeover
        self._placed: list[RequestPlaced] = []

    def place(self, request: QueuedRequest) -> Fit:
        """Of a request that has a ticket."""
        if self._takeover.settling:
            return Fit.FULL
        entry = self._entries[request.request_id]
        self._prefixes.look_up(entry)
        plan = self._planner.plan(entry.placement, request.expected_output_tokens // request.choices)
        if isinstance(plan, NoPlan):
            return Fit.BLOCKED if plan is NoPlan.BLOCKED else Fit.FULL
        self._placed.append(self._seated(entry, request, plan))
        return Fit.PLACED

    def placed(self) -> list[RequestPlaced]:
        """Since this was last asked."""
        placed, self._placed = self._placed, []
        return placed

    def _seated(self, entry: RequestEntry, request: QueuedRequest, plan: Plan) -> RequestPlaced:
        now = self._clock.now()
        work = Work.of(plan, entry.placement, request.expected_output_tokens, now, request.choices)
        entry.hold = PlacementHold(plan.prefill.slots if plan.prefill else None, plan.decode.slots, work)
        return RequestPlaced(
            entry.session,
            request.request_id,
            plan,
            queue_seconds=now - request.arrived_at,
            predicted_cached_tokens=self._prefixes.placed(entry, plan),
            requests_ahead=entry.requests_ahead,
            report=self._queue.report(request),
        )


class Requests:
    """timeout_seconds: the longest wait of a request that does not say. What leaves a place, or is offered,
    is followed by `dispatch`, which is the caller's to call."""

    def __init__(
        self,
        clock: Clock,
        queue: AdmissionQueue,
        entries: RequestTable,
        *,
        timeout_seconds: float,
        placer: Placer,
        availability: Availability,
        prefixes: PrefixLookup,
        learner: Learner,
        slow: SlowWorkers,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self._clock, self._queue, self._entries = clock, queue, entries
        self._placer, self._availability, self._prefixes = placer, availability, prefixes
        self._learner, self._slow = learner, slow

    # -- in

    def offer(self, session: ApiserverSession, admit: Admit) -> list[Effect]:
        """One that has no ticket."""
        ahead = self._queue.waiting_requests
        entry = RequestEntry(session, admit.placement, requests_ahead=ahead, prompt=admit.prompt)
        self._prefixes.look_up(entry)
        request = self._queued(admit, self._prefixes.best_cached_tokens(entry))
        self._entries.open(admit.request_id, entry)
        answer = self._queue.offer(request, self._placer.place)
        if isinstance(answer, Rejected):
            self._entries.close(admit.request_id)
            return [RequestRefused(session, admit.request_id, Outcome.REJECTED, answer.error)]
        evicted = answer.evicted if isinstance(answer, Queued) else None
        return [self.evict(evicted)] if evicted else []

    def prefetch(self, admit: Admit) -> list[Effect]:
        """For one that has no place yet."""
        entry = self._entries.get(admit.request_id)
        if entry is None or entry.hold or not self._prefixes.prefetches:
            return []
        wait_seconds = self._queue.retry_after_seconds(self._queued(admit))
        return [*self._prefixes.prefetch(entry, admit.tenant, wait_seconds)]

    def adopt(
        self, session: ApiserverSession, held: HeldRequest, hold: PlacementHold, *, charged: bool
    ) -> None:
        """One that runs already, placed by an earlier router. charged: its tenant has paid for it there."""
        now = self._clock.now()
        self._entries.open(held.request_id, RequestEntry(session, PlacementRequest(model=""), hold))
        self._queue.adopt(
            QueuedRequest(
                held.request_id,
                held.tenant,
                arrived_at=now,
                deadline=now,
                prompt_tokens=held.prompt_tokens,
                max_output_tokens=held.max_output_tokens,
                choices=held.choices,
                charged=charged,
            )
        )

    # -- on

    def dispatch(self) -> list[Effect]:
        """Those whose turn it is get their places."""
        if self._queue.waiting_requests:
            self._queue.dispatch(self._placer.place)
        return [*self._placer.placed()]

    def first_token(self, request_id: RequestId) -> list[Effect]:
        """Prefill is over: its worker can take another. Once for each that runs."""
        hold, now = self._entries[request_id].hold, self._clock.now()
        assert hold is not None, request_id
        work = hold.work
        self._slow.first_token(work)
        self._learner.first_token(hold, now)
        return (
            []
            if work.placed_at is None
            else [RequestStarted(request_id, now - work.placed_at, work.predicted)]
        )

    def progress(self, request_id: RequestId, output_tokens: int) -> None:
        self._queue.correct(request_id, output_tokens)

    # -- out

    def cached(self, request_id: RequestId, outcome: Outcome, actual: int | None) -> CachedTokens | None:
        """Of one that is about to end. actual: cached tokens of its prompt, if an engine told."""
        return self._prefixes.ended(self._entries[request_id], outcome, actual)

    def end(self, request_id: RequestId, how: Exit, output_tokens: int = 0) -> RequestEnded:
        """It runs or waits, and gives back what it held. output_tokens: of all its choices."""
        entry = self._entries.close(request_id)
        hold = entry.hold
        if hold is None:
            self._queue.withdraw(request_id)
        else:
            each = output_tokens // hold.work.choices
            self._slow.ended(hold.work, each)
            self._learner.ended(hold, each, self._clock.now())
            self._queue.release(request_id, output_tokens)
        return RequestEnded(entry.session, request_id, how)

    def expire(self) -> list[Effect]:
        """Evicts those that have waited for too long."""
        return [self.evict(eviction) for eviction in self._queue.expire()]

    def evict(self, eviction: EvictedRequest) -> RequestRefused:
        """What the queue gave up. Where workers are missing, that is the reason."""
        request_id = eviction.request.request_id
        entry = self._entries.close(request_id)
        error: LLMServeError = self._availability.lack(entry.placement.model) or eviction.error
        return RequestRefused(entry.session, request_id, Outcome.EVICTED, error)

    # -- parts

    def _queued(self, admit: Admit, cached_tokens: int = 0) -> QueuedRequest:
        now = self._clock.now()
        timeout = admit.timeout_seconds if admit.timeout_seconds > 0 else self.timeout_seconds
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
        )
