"""The router's own controller with simulated engines, in virtual time: discrete events, no sleep, no gRPC.

The engines are the pure parts of engines/sim (block pool, scheduler, timing); KV is handed over by a
transfer that takes as long as its bytes. What the pools report goes to a directory, and from there into the
next match.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.placement import match_of
from llmserve.core.blocks import chain_hashes
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import ApiserverId, BlockHash, LeaseId, RequestId, TenantId, WorkerId
from llmserve.core.outcome import Outcome, WorkerRole
from llmserve.core.request import EngineRequest, SamplingLimits
from llmserve.engines.handover import HandoverTicket
from llmserve.engines.sim.pool import BlockPool
from llmserve.engines.sim.scheduler import BatchLimits, PullOrder, SimScheduler, Step
from llmserve.engines.sim.sequence import SimSequence
from llmserve.engines.sim.timing import Timing
from llmserve.kvstore.directory import BlockReport, Directory, Holder
from llmserve.router.filters import PlacementRequest
from llmserve.router.messages import Admit, Effect, Placed
from llmserve.router.settings import RouterSettings, build_controller
from llmserve.router.worker import KvShape, WorkerSpec

BLOCK_TOKENS = 16
_BLOCK_BYTES = BLOCK_TOKENS * 128 * 1024
_TRANSFER_SECONDS, _TRANSFER_BYTES_PER_SECOND = 0.003, 2e9
_SHAPE = KvShape("rev", "bfloat16", "LBHNC", BLOCK_TOKENS, 1, 1, _BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Arrival:
    """at: virtual seconds."""

    at: float
    prompt: Sequence[int]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Engines:
    """Of a cluster. blocks and concurrency: of each engine. speeds: of each prefill engine, then of each
    decode engine, in multiples of `timing`'s."""

    prefill: int
    decode: int
    blocks: int = 1024
    concurrency: int = 32
    timing: Timing = field(default_factory=lambda: Timing(10_000, 0.015, 0.0002))
    speeds: Sequence[float] = ()


@dataclass(slots=True)
class Result:
    """first_token_seconds: from arrival, of each request. placed: requests by worker."""

    first_token_seconds: list[float] = field(default_factory=list)
    computed_tokens: int = 0
    prompt_tokens: int = 0
    placed: Counter[str] = field(default_factory=Counter)
    single: int = 0

    def largest_share(self, role: WorkerRole, workers: int) -> float:
        """Of all placements of that role, as a multiple of the fair share."""
        counts = [count for name, count in self.placed.items() if name.startswith(role)]
        return max(counts, default=0) * workers / sum(counts) if counts else 0.0


class _Engine:
    def __init__(self, name: WorkerId, engines: Engines, speed: float) -> None:
        self.name, self.busy, self.reports = name, False, 0
        self.pool = BlockPool(engines.blocks)
        self.scheduler = SimScheduler(self.pool, BatchLimits(engines.concurrency, 2048))
        self._timing, self._speed = engines.timing, speed

    def seconds(self, step: Step) -> float:
        return self._timing.step_seconds(step.prefill_tokens, step.decode_sequences) / self._speed


@dataclass(slots=True)
class _Running:
    arrival: Arrival
    placed: Placed | None = None
    tokens: int = 0


class Simulation:
    def __init__(self, engines: Engines, settings: RouterSettings, seed: int = 1) -> None:
        self._clock = VirtualClock()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0  # of events at the same time
        self._controller = build_controller(settings, self._clock, random.Random(seed))
        self._session, _ = self._controller.open_session(ApiserverId("api"), ())
        self._directory = Directory()
        self._engines: dict[WorkerId, _Engine] = {}
        self._running: dict[RequestId, _Running] = {}
        self.result = Result()
        names = [(role, n) for role, count in _counts(engines) for n in range(count)]
        for index, (role, number) in enumerate(names):
            name = WorkerId(f"{role}-{number}")
            speed = engines.speeds[index] if engines.speeds else 1.0
            self._engines[name] = _Engine(name, engines, speed)
            self._controller.register(_spec(name, role, engines))

    def run(self, arrivals: Sequence[Arrival]) -> Result:
        for number, arrival in enumerate(arrivals):
            request_id = RequestId(f"request-{number}")
            self._running[request_id] = _Running(arrival)
            self._at(arrival.at, lambda request_id=request_id: self._arrive(request_id))  # type: ignore[misc]
        while self._events:
            time, _, event = heapq.heappop(self._events)
            self._clock.advance(max(0.0, time - self._clock.now()))
            event()
        assert not self._running, f"{len(self._running)} requests did not end"
        self._controller.check_integrity()
        return self.result

    def _at(self, time: float, event: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (time, self._sequence, event))

    # -- a request

    def _arrive(self, request_id: RequestId) -> None:
        arrival = self._running[request_id].arrival
        match = match_of(self._directory, chain_hashes(arrival.prompt, BLOCK_TOKENS, ""))
        placement = PlacementRequest("m", len(arrival.prompt), match=match)
        admit = Admit(request_id, TenantId("t"), placement, max_output_tokens=arrival.output_tokens)
        self._take(self._controller.admit(self._session, admit))

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Placed):
                self._place(effect)

    def _place(self, placed: Placed) -> None:
        running, plan = self._running[placed.request_id], placed.plan
        running.placed = placed
        self.result.single += plan.prefill is None
        for member in filter(None, (plan.prefill, plan.decode)):
            self.result.placed[member.spec.worker_id] += 1
        first = plan.prefill or plan.decode
        tokens = 1 if plan.prefill else running.arrival.output_tokens
        self._add(first.spec.worker_id, placed.request_id, running.arrival.prompt, tokens)

    def _add(
        self,
        worker: WorkerId,
        request_id: RequestId,
        prompt: Sequence[int],
        tokens: int,
        ticket: HandoverTicket | None = None,
    ) -> None:
        request = EngineRequest(request_id, prompt, SamplingLimits(tokens))
        engine = self._engines[worker]
        engine.scheduler.add(SimSequence(request, ticket, BLOCK_TOKENS, 32000))
        self._step(engine)

    # -- an engine

    def _step(self, engine: _Engine) -> None:
        if engine.busy:
            return
        step = engine.scheduler.plan()
        for order in step.pulls:
            self._pull(engine, order)
        self._report(engine)
        if step.work:
            engine.busy = True
            self.result.computed_tokens += step.prefill_tokens
            self._at(self._clock.now() + engine.seconds(step), lambda: self._end_step(engine, step))

    def _pull(self, engine: _Engine, order: PullOrder) -> None:
        size_bytes = len(order.tokens) / BLOCK_TOKENS * _BLOCK_BYTES
        seconds = _TRANSFER_SECONDS + size_bytes / _TRANSFER_BYTES_PER_SECOND

        def ended() -> None:
            engine.scheduler.pull_ended(order.sequence.request_id, True)
            self._step(engine)

        self._at(self._clock.now() + seconds, ended)

    def _end_step(self, engine: _Engine, step: Step) -> None:
        engine.busy = False
        committed = engine.scheduler.commit(step)
        self._report(engine)
        for sequence in committed.complete:
            self._token(engine, sequence, sequence.sample())
        self._step(engine)

    def _token(self, engine: _Engine, sequence: SimSequence, token: int) -> None:
        running = self._running[sequence.request_id]
        running.tokens += 1
        if sequence.finish_reason(1 << 20) is not None:
            engine.pool.release(engine.scheduler.finish(sequence))
        if running.tokens == 1:
            self._first_token(sequence.request_id, running)
        if running.tokens == running.arrival.output_tokens:
            del self._running[sequence.request_id]
            tokens, session = running.tokens, self._session
            self._take(self._controller.done(session, sequence.request_id, Outcome.COMPLETED, tokens))
        elif running.tokens == 1 and running.placed and running.placed.plan.prefill:
            self._hand_over(sequence, running, token)

    def _first_token(self, request_id: RequestId, running: _Running) -> None:
        self.result.first_token_seconds.append(self._clock.now() - running.arrival.at)
        self.result.prompt_tokens += len(running.arrival.prompt)
        self._take(self._controller.first_token(self._session, request_id))

    def _hand_over(self, sequence: SimSequence, running: _Running, token: int) -> None:
        assert running.placed is not None
        prompt, left = [*running.arrival.prompt, token], running.arrival.output_tokens - 1
        ticket = HandoverTicket(
            WorkerId("prefill"), 1, LeaseId("lease"), (), (), len(prompt) - 1, BLOCK_TOKENS, 30.0
        )
        worker = running.placed.plan.decode.spec.worker_id
        self._add(worker, sequence.request_id, prompt, left, ticket)

    def _report(self, engine: _Engine) -> None:
        if not engine.pool.has_events() and engine.reports:
            return
        events = engine.pool.take_events()
        engine.reports += 1
        report = BlockReport(
            Holder(engine.name),
            1,
            engine.reports,
            snapshot=engine.reports == 1,
            removed=[BlockHash(key) for key in events.removed],
            stored=[BlockHash(key) for key in events.stored],
        )
        self._directory.apply(report)


def _counts(engines: Engines) -> tuple[tuple[WorkerRole, int], ...]:
    return ((WorkerRole.PREFILL, engines.prefill), (WorkerRole.DECODE, engines.decode))


def _spec(name: WorkerId, role: WorkerRole, engines: Engines) -> WorkerSpec:
    return WorkerSpec(
        name, role, "host:1", 1, "m", _SHAPE, 1 << 20, engines.blocks, engines.concurrency, ("tcp",)
    )
