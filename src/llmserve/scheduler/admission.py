"""Admission: reject at once, or queue; dispatch in turn while budgets hold; evict at the deadline.

Life of a request: offer -> (Rejected) or waiting -> dispatched | withdrawn | evicted; a dispatched
or adopted one is running -> released. Every exit is counted once and gives everything back.
"""

from collections.abc import Iterator, Sequence

from llmserve.core.clock import Clock
from llmserve.core.errors import QueueFull, QueueTimeout
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.budgets import Budget
from llmserve.scheduler.deadlines import Deadlines
from llmserve.scheduler.decisions import Dispatched, Evicted, Fit, Place, Queued, Rejected, Tally
from llmserve.scheduler.fairness import Fairness
from llmserve.scheduler.flow import Flow
from llmserve.scheduler.ordering import Ordering
from llmserve.scheduler.rate import ServiceRate
from llmserve.scheduler.request import QueuedRequest, Waiting

# A client that comes back sooner costs more than it gains.
_SHORTEST_RETRY_SECONDS = 0.1


class AdmissionQueue:
    """One for the cluster. Its caller never offers or adopts an id that waits or runs already.

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
        fairness: Fairness,
        ordering: Ordering,
    ) -> None:
        self._clock = clock
        self._max_queued = max_queued
        self._longest_retry = longest_retry_seconds
        self._budgets = budgets
        self._fairness = fairness
        self._ordering = ordering
        self._rate = ServiceRate()
        self._flows: dict[TenantId, Flow] = {}
        self._waiting: dict[RequestId, Waiting] = {}
        self._running: dict[RequestId, QueuedRequest] = {}
        self._deadlines = Deadlines()
        self._sequence = 0
        self.tally = Tally()

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
        """Takes a request into the queue, if there is room in it; one that finds none is refused
        unless it need not wait. Called when dispatch has nothing more to do, and followed by it."""
        self.tally.offered += 1
        if len(self._waiting) < self._max_queued:
            self._enqueue(request)
            return Queued(ahead=len(self._waiting) - 1)
        if self._fits(request) and place(request) is Fit.PLACED:
            self._start(request)
            self.tally.dispatched += 1
            return Dispatched()
        self.tally.rejected += 1
        return Rejected(self._full(request))

    def adopt(self, request: QueuedRequest) -> None:
        """Counts a request that runs already: placed by an earlier router."""
        assert request.request_id not in self._running
        self.tally.adopted += 1
        self._start(request)

    # -- on

    def dispatch(self, place: Place) -> list[QueuedRequest]:
        """Offers requests to `place` in turn and returns those it placed. A budget that is used up
        stops it, so that a large request is not overtaken for ever."""
        dispatched: list[QueuedRequest] = []
        cursors = dict.fromkeys(self._flows, 0)  # per flow: blocked ones before it were passed over
        while cursors:
            heads = [self._flows[tenant][index] for tenant, index in cursors.items()]
            waiting = self._fairness.pick(heads)
            request = waiting.request
            fit = place(request) if self._fits(request) else Fit.FULL
            if fit is Fit.FULL:
                break
            if fit is Fit.PLACED:
                self._leave_queue(waiting)
                self._start(request)
                self.tally.dispatched += 1
                dispatched.append(request)
            else:
                cursors[request.tenant] += 1
            if cursors[request.tenant] >= len(self._flows.get(request.tenant, ())):
                del cursors[request.tenant]
        return dispatched

    def correct(self, request_id: RequestId, output_tokens: int) -> None:
        """A running request has generated this many tokens so far."""
        for budget in self._budgets:
            budget.correct(request_id, output_tokens)

    # -- out

    def release(self, request_id: RequestId, output_tokens: int = 0) -> bool:
        """A running request is over, however it ended. False: no such request runs."""
        request = self._running.pop(request_id, None)
        if request is None:
            return False
        for budget in self._budgets:
            budget.release(request_id)
        self._fairness.ended(request, output_tokens)
        self._rate.departed(self._clock.now())
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
        now, evicted = self._clock.now(), []
        while (request_id := self._deadlines.due(now)) is not None:
            waiting = self._waiting[request_id]
            self._leave_queue(waiting)
            self.tally.evicted += 1
            evicted.append(Evicted(waiting.request, self._timeout(waiting.request)))
        return evicted

    def next_deadline(self) -> float | None:
        """When expire has something to do; None while nothing waits."""
        return self._deadlines.next()

    # -- about

    def retry_after_seconds(self) -> float:
        """When one who comes now could expect a turn, at the recent rate of service."""
        wait = self._rate.wait_seconds(len(self._waiting) + 1, self._clock.now(), self._longest_retry)
        return max(_SHORTEST_RETRY_SECONDS, wait)

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

    # -- parts

    def _enqueue(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._waiting, request
        assert request.request_id not in self._running, request
        waiting = Waiting(self._ordering.key(request), self._sequence, request)
        self._sequence += 1
        if not self._waiting:
            self._rate.backlog(True, self._clock.now())
        self._waiting[request.request_id] = waiting
        flow = self._flows.get(request.tenant)
        if flow is None:
            flow = self._flows[request.tenant] = Flow(request.tenant)
        flow.add(waiting)
        self._deadlines.put(request.request_id, request.deadline)

    def _leave_queue(self, waiting: Waiting) -> None:
        request = waiting.request
        del self._waiting[request.request_id]
        if not self._waiting:
            self._rate.backlog(False, self._clock.now())
        flow = self._flows[request.tenant]
        flow.remove(waiting)
        if not flow:
            del self._flows[request.tenant]
        self._deadlines.remove(request.request_id)

    def _start(self, request: QueuedRequest) -> None:
        self._running[request.request_id] = request
        for budget in self._budgets:
            budget.reserve(request)
        self._fairness.dispatched(request)

    def _fits(self, request: QueuedRequest) -> bool:
        return all(budget.fits(request) for budget in self._budgets)

    def _reason(self, request: QueuedRequest) -> str:
        used_up = [budget.name for budget in self._budgets if not budget.fits(request)]
        return f" (used up: {', '.join(used_up)})" if used_up else ""

    def _full(self, request: QueuedRequest) -> QueueFull:
        message = f"the queue is full: {len(self._waiting)} requests wait{self._reason(request)}"
        return QueueFull(message, retry_after_seconds=self.retry_after_seconds())

    def _timeout(self, request: QueuedRequest) -> QueueTimeout:
        waited = self._clock.now() - request.arrived_at
        message = f"waited {waited:.1f} s for a place{self._reason(request)}"
        return QueueTimeout(message, retry_after_seconds=self.retry_after_seconds())
