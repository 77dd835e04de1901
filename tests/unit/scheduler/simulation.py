"""A cluster in virtual time: clients on one side, slots that compute tokens on the other."""

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.request import EvictedRequest, Fit, Queued, QueuedRequest, Rejected
from llmserve.scheduler.scheduler import Policy, Scheduler
from llmserve.scheduler.snapshot import SchedulerSnapshot

# What a slot computes: (prompt + output tokens) / this.
TOKENS_PER_SECOND = 1000.0


@dataclass(frozen=True, slots=True)
class Client:
    """requests_per_second come at random times, each of these sizes: (prompt, output) tokens drawn."""

    tenant: str
    requests_per_second: float
    size: Callable[[random.Random], tuple[int, int]]


@dataclass
class Report:
    """latencies: from arrival to end, by tenant. served_tokens: of requests that ended in the window."""

    served_tokens: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: Counter[str] = field(default_factory=Counter)

    def p99(self, tenant: str) -> float:
        ordered = sorted(self.latencies[tenant])
        return ordered[int(len(ordered) * 0.99)]


class Simulation:
    """Figures are of the time after warm_up_seconds."""

    def __init__(
        self,
        policy: Policy,
        clients: list[Client],
        *,
        slots: int,
        seconds: float,
        warm_up_seconds: float = 0.0,
    ) -> None:
        self.clock = VirtualClock()
        self._policy, self._capacity = policy, Capacity(slots, 1.0)
        self.scheduler = self._scheduler()
        self.report = Report()
        self._seconds, self._warm_up = seconds, warm_up_seconds
        self._rng = random.Random(5)
        self._free_slots = slots
        self._outputs: dict[RequestId, int] = {}
        self._running: dict[RequestId, QueuedRequest] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._wake_at = 0.0
        for client in clients:
            self._arrive_next(client)

    def run(self) -> Report:
        while self._events and self._events[0][0] <= self._seconds:
            at, _, event = heapq.heappop(self._events)
            self.clock.advance(at - self.clock.now())
            for evicted in self.scheduler.queue.expire():
                self._refuse(evicted.request)
            event()
            self.scheduler.queue.dispatch(self._place)
            ready_at = self.scheduler.queue.next_turn()
            if ready_at is not None and ready_at != self._wake_at:
                self._wake_at = ready_at
                self._at(ready_at, lambda: None)
        self.scheduler.queue.check_integrity()
        return self.report

    def take_over_at(self, when: float, *, told: bool = True) -> None:
        """Another router goes on from then on: it is told what waits and what runs, and, unless not told,
        knows what this one saved."""
        self._at(when, lambda: self._take_over(told))

    def _take_over(self, told: bool) -> None:
        older, self.scheduler = self.scheduler, self._scheduler()
        if told:
            saved = SchedulerSnapshot.from_json(older.snapshot().to_json())
            self.scheduler.restore(saved)
        for request in self._running.values():
            self.scheduler.queue.adopt(replace(request, charged=told))
        for request in older.queue.waiting():
            self.scheduler.queue.offer(request, lambda _: Fit.FULL)

    def _scheduler(self) -> Scheduler:
        scheduler = Scheduler(self.clock, self._policy)
        scheduler.set_capacities({"": self._capacity})
        return scheduler

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def _arrive_next(self, client: Client) -> None:
        gap = self._rng.expovariate(client.requests_per_second)
        self._at(self.clock.now() + gap, lambda: self._arrive(client))

    def _arrive(self, client: Client) -> None:
        self._arrive_next(client)
        prompt, output = client.size(self._rng)
        self._count += 1
        now, name = self.clock.now(), RequestId(str(self._count))
        request = QueuedRequest(name, TenantId(client.tenant), now, now + 1000.0, prompt)
        self._outputs[name] = output
        match self.scheduler.queue.offer(request, self._place):
            case Queued(_, EvictedRequest(victim)):
                self._refuse(victim)
            case Rejected():
                self._refuse(request)

    def _refuse(self, request: QueuedRequest) -> None:
        self.report.refused[request.tenant] += 1

    def _place(self, request: QueuedRequest) -> Fit:
        if not self._free_slots:
            return Fit.FULL
        self._free_slots -= 1
        self._running[request.request_id] = request
        tokens = request.prompt_tokens + self._outputs[request.request_id]
        self._at(self.clock.now() + tokens / TOKENS_PER_SECOND, lambda: self._end(request, tokens))
        return Fit.PLACED

    def _end(self, request: QueuedRequest, tokens: int) -> None:
        self._free_slots += 1
        del self._running[request.request_id]
        self.scheduler.queue.release(request.request_id, self._outputs.pop(request.request_id))
        if self.clock.now() >= self._warm_up:
            self.report.served_tokens[request.tenant] += tokens
            self.report.latencies[request.tenant].append(self.clock.now() - request.arrived_at)


def drawn(prompt: tuple[int, int], output: tuple[int, int]) -> Callable[[random.Random], tuple[int, int]]:
    """Sizes between these bounds."""
    return lambda rng: (rng.randint(*prompt), rng.randint(*output))
