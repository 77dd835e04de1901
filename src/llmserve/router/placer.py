"""Gives a request its place, when the queue says that it is its turn. Pure."""

from llmserve.core.clock import Clock
from llmserve.router.messages import Placed
from llmserve.router.plan import NoPlan, Plan, Planner
from llmserve.router.prefixes import Prefixes
from llmserve.router.session import Holding, Ticket, Work
from llmserve.router.succession import Succession
from llmserve.router.tickets import Tickets
from llmserve.scheduler.admission import AdmissionQueue
from llmserve.scheduler.decisions import Fit
from llmserve.scheduler.request import QueuedRequest


class Placer:
    """`place` is for the queue; `placed` tells what came of it."""

    def __init__(
        self,
        clock: Clock,
        queue: AdmissionQueue,
        tickets: Tickets,
        *,
        planner: Planner,
        prefixes: Prefixes,
        succession: Succession,
    ) -> None:
        self._clock, self._queue, self._tickets = clock, queue, tickets
        self._planner, self._prefixes, self._succession = planner, prefixes, succession
        self._placed: list[Placed] = []

    def place(self, request: QueuedRequest) -> Fit:
        """Of a request that has a ticket."""
        if self._succession.settling:
            return Fit.FULL
        ticket = self._tickets[request.request_id]
        self._prefixes.look_up(ticket)
        plan = self._planner.plan(ticket.placement, request.expected_output_tokens // request.choices)
        if isinstance(plan, NoPlan):
            return Fit.BLOCKED if plan is NoPlan.BLOCKED else Fit.FULL
        self._placed.append(self._seated(ticket, request, plan))
        return Fit.PLACED

    def placed(self) -> list[Placed]:
        """Since this was last asked."""
        placed, self._placed = self._placed, []
        return placed

    def _seated(self, ticket: Ticket, request: QueuedRequest, plan: Plan) -> Placed:
        now = self._clock.now()
        work = Work.of(plan, ticket.placement, request.expected_output_tokens, now, request.choices)
        ticket.holding = Holding(plan.prefill.seats if plan.prefill else None, plan.decode.seats, work)
        return Placed(
            ticket.session,
            request.request_id,
            plan,
            queue_seconds=now - request.arrived_at,
            predicted_cached_tokens=self._prefixes.placed(ticket, plan),
            requests_ahead=ticket.requests_ahead,
            standing=self._queue.standing(request),
        )
