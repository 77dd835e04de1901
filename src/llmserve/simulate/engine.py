"""An engine of engines/sim in virtual time: its scheduler, pool and timing, without tokens and bytes.

Decode steps that are alike pass as one event, so that what a simulation costs grows with its requests,
not with their tokens. What comes meanwhile cuts that short, at the end of the step it came in.
"""

from dataclasses import dataclass
from typing import Protocol

from llmserve.core.clock import Agenda
from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.kv_params import PullParams
from llmserve.core.request import EngineLoad
from llmserve.engines.sim.limits import BatchLimits
from llmserve.engines.sim.pool import BlockPool
from llmserve.engines.sim.scheduler import SimScheduler
from llmserve.engines.sim.step import PullOrder, Step, Timing
from llmserve.simulate.adapters import NO_TIERS, AdapterTiers, VirtualAdapters
from llmserve.simulate.sequence import TracedSequence

# Apiservers tell the router of every so many tokens: not longer without an event.
_MOST_STEPS = 256


class EngineOwner(Protocol):
    """Receives the events of an engine. Each method may add requests to engines, this one included."""

    def pull(self, engine: "VirtualEngine", order: PullOrder[TracedSequence]) -> None:
        """Fetches these blocks; pull_ended follows."""

    def unneeded(self, ticket: PullParams) -> None:
        """The blocks of this ticket are not fetched: they are in the engine's cache."""

    def drawn(self, engine: "VirtualEngine", sequence: TracedSequence, tokens: int, seconds: float) -> None:
        """The sequence has so many tokens more: the last one now, the others `seconds` apart before it."""

    def cache_changed(self, engine: "VirtualEngine") -> None:
        """The pool holds other cached blocks than before. Called between steps."""

    def adapters_changed(self, engine: "VirtualEngine") -> None:
        """An adapter has come to another tier."""


@dataclass(slots=True)
class _Steps:
    """Equal steps under way, each of this many seconds."""

    step: Step[TracedSequence]
    began_at: float
    seconds: float
    count: int


@dataclass(slots=True)
class EngineTotals:
    busy_seconds: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    most_used_blocks: int = 0


class VirtualEngine:
    """add, pull_ended and release may be called at any time."""

    def __init__(
        self,
        worker_id: WorkerId,
        total_blocks: int,
        limits: BatchLimits,
        timing: Timing,
        agenda: Agenda,
        owner: EngineOwner,
        adapters: AdapterTiers = NO_TIERS,
    ) -> None:
        self.worker_id = worker_id
        self.pool = BlockPool(total_blocks)
        self.adapters = VirtualAdapters(adapters, agenda, lambda: owner.adapters_changed(self))
        self._totals = EngineTotals()
        self._scheduler: SimScheduler[TracedSequence] = SimScheduler(self.pool, limits)
        self._timing = timing
        self._agenda = agenda
        self._owner = owner
        self._running: _Steps | None = None
        self._begins = False  # its next step is on the agenda
        self._events = 0  # the end that counts is the one of this number

    def __repr__(self) -> str:
        return f"<VirtualEngine {self.worker_id} running={self._scheduler.running_requests}>"

    # -- what comes

    def add(self, sequence: TracedSequence) -> None:
        self.adapters.hold(sequence.adapter, lambda: self._add(sequence))

    def _add(self, sequence: TracedSequence) -> None:
        """Its adapter is loaded."""
        self._scheduler.add(sequence)
        self._disturb()

    def pull_ended(self, request_id: RequestId, tokens: tuple[int, ...] = ()) -> None:
        """tokens: as SimScheduler.pull_ended."""
        self._scheduler.pull_ended(request_id, loaded=True, tokens=tokens)
        self._disturb()

    def finish(self, sequence: TracedSequence) -> list[int]:
        """The sequence has all its tokens. Its blocks are the caller's until release."""
        self.adapters.let_go(sequence.adapter)
        return self._scheduler.finish(sequence)

    def release(self, blocks: list[int]) -> None:
        self.pool.release(blocks)
        self._disturb()

    # -- how it stands

    def load(self) -> EngineLoad:
        return EngineLoad(
            running_requests=self._scheduler.running_requests,
            waiting_requests=self._scheduler.waiting_requests + self.adapters.waiting_requests,
            used_blocks=self.pool.used_blocks,
        )

    def totals(self) -> EngineTotals:
        self._totals.preemptions = self._scheduler.preemptions
        return self._totals

    # -- steps

    def _disturb(self) -> None:
        """Something is new: the step after the current one is planned with it."""
        running = self._running
        if running is None:
            self._begin_soon()
        elif running.count > 1:
            passed = int((self._agenda.now - running.began_at) / running.seconds) if running.seconds else 0
            running.count = min(running.count, passed + 1)
            self._end_later(running)

    def _begin_soon(self) -> None:
        if not self._begins:
            self._begins = True
            self._agenda.at(self._agenda.now, self._begin)

    def _begin(self) -> None:
        self._begins = False
        step = self._scheduler.plan()
        for ticket in step.releases:
            assert isinstance(ticket, PullParams), "nothing else is simulated"
            self._owner.unneeded(ticket)
        for order in step.pulls:
            self._owner.pull(self, order)
        if self.pool.has_events():
            self._owner.cache_changed(self)
        self._totals.most_used_blocks = max(self._totals.most_used_blocks, self.pool.used_blocks)
        if step.work:
            most = min(_MOST_STEPS, *(sequence.quiet_tokens for sequence, _ in step.work))
            seconds = self._timing.step_seconds(step.prefill_tokens, step.decode_sequences)
            seconds += sum(count * sequence.extra_seconds_per_token for sequence, count in step.work)
            count = self._scheduler.steps_alike(step, most)
            self._running = _Steps(step, self._agenda.now, seconds, count)
            self._end_later(self._running)

    def _end_later(self, running: _Steps) -> None:
        self._events += 1
        number = self._events
        when = running.began_at + running.seconds * running.count
        self._agenda.at(when, lambda: self._end(running) if number == self._events else None)

    def _end(self, running: _Steps) -> None:
        self._running = None
        step, count = running.step, running.count
        self._count(step, running)
        self._scheduler.repeat(step, count - 1)
        for sequence in self._scheduler.commit(step).complete:
            sequence.total_tokens += 1
            self._owner.drawn(self, sequence, count, running.seconds)
        self._begin_soon()

    def _count(self, step: Step[TracedSequence], running: _Steps) -> None:
        self._totals.busy_seconds += running.seconds * running.count
        self._totals.prefill_tokens += step.prefill_tokens
        self._totals.decode_tokens += step.decode_sequences * running.count
