"""Requests from Admit to their end: offered, placed, evicted, over. Pure."""

from llmserve.core.clock import Clock
from llmserve.core.errors import LLMServeError
from llmserve.core.ids import RequestId
from llmserve.core.outcome import Outcome
from llmserve.router.filters import PlacementRequest
from llmserve.router.learner import Learner
from llmserve.router.messages import Admit, CachedTokens, Effect, Ended, Exit, Held, Refused, Started
from llmserve.router.placer import Placer
from llmserve.router.prefixes import Prefixes
from llmserve.router.session import Holding, Session, Ticket
from llmserve.router.slow import SlowBook
from llmserve.router.supply import Supply
from llmserve.router.tickets import Tickets
from llmserve.scheduler.admission import AdmissionQueue
from llmserve.scheduler.decisions import Evicted, Queued, Rejected
from llmserve.scheduler.request import QueuedRequest


class Requests:
    """timeout_seconds: the longest wait of a request that does not say. What leaves a place, or is offered,
    is followed by `dispatch`, which is the caller's to call."""

    def __init__(
        self,
        clock: Clock,
        queue: AdmissionQueue,
        tickets: Tickets,
        *,
        timeout_seconds: float,
        placer: Placer,
        supply: Supply,
        prefixes: Prefixes,
        learner: Learner,
        slow: SlowBook,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self._clock, self._queue, self._tickets = clock, queue, tickets
        self._placer, self._supply, self._prefixes = placer, supply, prefixes
        self._learner, self._slow = learner, slow

    # -- in

    def offer(self, session: Session, admit: Admit) -> list[Effect]:
        """One that has no ticket."""
        ahead = self._queue.waiting_requests
        ticket = Ticket(session, admit.placement, requests_ahead=ahead, prompt=admit.prompt)
        self._prefixes.look_up(ticket)
        request = self._queued(admit, self._prefixes.best_cached_tokens(ticket))
        self._tickets.open(admit.request_id, ticket)
        answer = self._queue.offer(request, self._placer.place)
        if isinstance(answer, Rejected):
            self._tickets.close(admit.request_id)
            return [Refused(session, admit.request_id, Outcome.REJECTED, answer.error)]
        evicted = answer.evicted if isinstance(answer, Queued) else None
        return [self.evict(evicted)] if evicted else []

    def prefetch(self, admit: Admit) -> list[Effect]:
        """For one that has no place yet."""
        ticket = self._tickets.get(admit.request_id)
        if ticket is None or ticket.holding or not self._prefixes.prefetches:
            return []
        wait_seconds = self._queue.retry_after_seconds(self._queued(admit))
        return [*self._prefixes.prefetch(ticket, admit.tenant, wait_seconds)]

    def adopt(self, session: Session, held: Held, holding: Holding, *, charged: bool) -> None:
        """One that runs already, placed by an earlier router. charged: its tenant has paid for it there."""
        now = self._clock.now()
        self._tickets.open(held.request_id, Ticket(session, PlacementRequest(model=""), holding))
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
        holding, now = self._tickets[request_id].holding, self._clock.now()
        assert holding is not None, request_id
        work = holding.work
        self._slow.first_token(work)
        self._learner.first_token(holding, now)
        return [] if work.placed_at is None else [Started(request_id, now - work.placed_at, work.predicted)]

    def progress(self, request_id: RequestId, output_tokens: int) -> None:
        self._queue.correct(request_id, output_tokens)

    # -- out

    def cached(self, request_id: RequestId, outcome: Outcome, actual: int | None) -> CachedTokens | None:
        """Of one that is about to end. actual: cached tokens of its prompt, if an engine told."""
        return self._prefixes.ended(self._tickets[request_id], outcome, actual)

    def end(self, request_id: RequestId, how: Exit, output_tokens: int = 0) -> Ended:
        """It runs or waits, and gives back what it held. output_tokens: of all its choices."""
        ticket = self._tickets.close(request_id)
        holding = ticket.holding
        if holding is None:
            self._queue.withdraw(request_id)
        else:
            each = output_tokens // holding.work.choices
            self._slow.ended(holding.work, each)
            self._learner.ended(holding, each, self._clock.now())
            self._queue.release(request_id, output_tokens)
        return Ended(ticket.session, request_id, how)

    def expire(self) -> list[Effect]:
        """Evicts those that have waited for too long."""
        return [self.evict(eviction) for eviction in self._queue.expire()]

    def evict(self, eviction: Evicted) -> Refused:
        """What the queue gave up. Where workers are missing, that is the reason."""
        request_id = eviction.request.request_id
        ticket = self._tickets.close(request_id)
        error: LLMServeError = self._supply.lack(ticket.placement.model) or eviction.error
        return Refused(ticket.session, request_id, Outcome.EVICTED, error)

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
