"""Learns from placed requests how fast their workers are (pace.py). Pure.

Which workers are slow, against the others of their role. Pure: what happens to requests and a clock in,
the slow ones out.

A worker's pace is the median of its last samples: seconds from placement to the first token for each
1,000 tokens that it computes, and seconds for each token after it. Samples are forgotten after a while; so
a worker that is avoided, and gets no new ones, is tried again.
"""

from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from llmserve.core.clock import Clock
from llmserve.core.ids import WorkerId
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.sessions import PlacementHold, Work
from llmserve.router.workers.speed import LatencyModel, LatencyModels
from llmserve.router.workers.worker import ClusterMember, WorkerSlots


class Learner:
    def __init__(self, latencies: LatencyModels) -> None:
        self._latencies = latencies

    def first_token(self, hold: PlacementHold, now: float) -> None:
        """Gives the prefill seat back, and takes the time. Called once for each holding."""
        computing, work = hold.computing, hold.work
        busy = hold.first_token(now)
        if work.predicted:
            own = self._own(computing, work.model)
            self._latencies.prefilled(own, work.model, work.computed_tokens, busy - work.predicted.parts.load)

    def ended(self, hold: PlacementHold, output_tokens: int, now: float) -> None:
        """Gives everything back, and takes the time since the first token. output_tokens: of a choice."""
        work, decode = hold.work, hold.decode
        if work.predicted and work.first_token_at is not None:
            running = (work.running_at_first_token + decode.placed_requests) / 2
            seconds = now - work.first_token_at
            own = self._own(decode, work.model)
            self._latencies.decoded(own, work.model, running, output_tokens - 1, seconds)
        hold.give_back(now)

    def _own(self, slots: WorkerSlots, model: str) -> LatencyModel:
        if slots.latency is None:
            slots.latency = self._latencies.of_model(model).like()
        return slots.latency


_LEAST_PROMPT_TOKENS = 256  # shorter prompts cost a step all the same
_LEAST_OUTPUT_TOKENS = 8


class Stage(StrEnum):
    FIRST_TOKEN = "first token"
    LATER_TOKENS = "later tokens"


# Differences that no user notices make no worker slow. Seconds, of each stage's unit.
_NOTICEABLE_SECONDS = {Stage.FIRST_TOKEN: 0.1, Stage.LATER_TOKENS: 0.005}


@dataclass(frozen=True, slots=True)
class SlowLimits:
    """factor: of the median of the others, from which on a worker is slow; below half of it it is not any
    more. samples: of a worker, before it is judged."""

    factor: float = 3.0
    samples: int = 5
    remembered: int = 15
    memory_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class _Group:
    """Workers that compare: they do the same."""

    model: str
    role: str
    stage: Stage


@dataclass(slots=True)
class _Pace:
    """Of one worker. samples: (time, seconds). seconds: their median."""

    samples: deque[tuple[float, float]]
    seconds: float = 0.0
    slow: bool = False

    def add(self, now: float, seconds: float, since: float) -> None:
        while self.samples and self.samples[0][0] <= since:
            self.samples.popleft()
        self.samples.append((now, seconds))
        self.seconds = median(value for _, value in self.samples)

    def heard_since(self, time: float) -> bool:
        return bool(self.samples) and self.samples[-1][0] > time


class SlowWorkers:
    def __init__(self, clock: Clock, limits: SlowLimits) -> None:
        self._clock = clock
        self.limits = limits
        self._latencies: dict[_Group, dict[WorkerId, _Pace]] = {}
        self._stalled: dict[WorkerId, float] = {}
        self._slow: set[tuple[_Group, WorkerId]] = set()  # most often none: each placement asks

    def __repr__(self) -> str:
        return f"<SlowWorkers slow={sorted(self.workers())}>"

    # -- what happens

    def first_token(self, work: Work) -> None:
        """Just now, once for each work."""
        if work.plan is None or work.placed_at is None:
            return
        thousands = max(work.computed_tokens, _LEAST_PROMPT_TOKENS) / 1000
        worker = work.plan.prefill or work.plan.decode
        self._note(worker, Stage.FIRST_TOKEN, (self._clock.now() - work.placed_at) / thousands)

    def ended(self, work: Work, output_tokens: int) -> None:
        """Just now, however it did; also without a first token. output_tokens: of a choice."""
        if work.plan is None or work.first_token_at is None or output_tokens < _LEAST_OUTPUT_TOKENS:
            return
        seconds = self._clock.now() - work.first_token_at
        self._note(work.plan.decode, Stage.LATER_TOKENS, seconds / (output_tokens - 1))

    def stalled(self, worker_id: WorkerId) -> None:
        """A request waited for it in vain."""
        self._stalled = self._stalled_since(self._since())  # those that are forgotten may be gone for good
        self._stalled[worker_id] = self._clock.now()

    # -- what follows

    def names(self) -> Set[WorkerId]:
        """Of the slow ones. Each placement asks."""
        since = self._since()
        return self._stalled_since(since).keys() | {
            name for group, name in self._slow if self._latencies[group][name].heard_since(since)
        }

    def stalled_names(self) -> Set[WorkerId]:
        """Of those that gave a request no output in time. Each placement asks."""
        return self._stalled_since(self._since()).keys() if self._stalled else frozenset()

    def workers(self) -> Mapping[WorkerId, str]:
        """The slow ones, and why: for people who ask."""
        since = self._since()
        reasons = dict.fromkeys(self._stalled_since(since), "it gave a request no output in time")
        for group, worker_id in self._slow:
            latency = self._latencies[group][worker_id]
            if latency.heard_since(since):
                reasons[worker_id] = f"slow at {group.stage}: {self._compared(group, latency, since)}"
        return reasons

    # -- parts

    def _since(self) -> float:
        """When what is remembered begins."""
        return self._clock.now() - self.limits.memory_seconds

    def _stalled_since(self, since: float) -> dict[WorkerId, float]:
        return {worker: at for worker, at in self._stalled.items() if at > since}

    def _note(self, worker: ClusterMember, stage: Stage, seconds: float) -> None:
        group = _Group(worker.spec.model, worker.spec.role, stage)
        latencies = self._latencies.setdefault(group, {})
        latency = latencies.get(worker.spec.worker_id)
        now, since = self._clock.now(), self._since()
        if latency is None or not latency.heard_since(since):
            self._forget(group, since)
            latency = latencies[worker.spec.worker_id] = _Pace(deque(maxlen=self.limits.remembered))
        latency.add(now, seconds, since)
        latency.slow = self._judged(group, latency, since)
        (self._slow.add if latency.slow else self._slow.discard)((group, worker.spec.worker_id))

    def _forget(self, group: _Group, since: float) -> None:
        """Workers that were not heard of for long; they may be gone for good."""
        latencies = self._latencies[group]
        for worker_id in [name for name, latency in latencies.items() if not latency.heard_since(since)]:
            del latencies[worker_id]
            self._slow.discard((group, worker_id))

    def _judged(self, group: _Group, latency: _Pace, since: float) -> bool:
        others = self._others(group, latency, since)
        if len(latency.samples) < self.limits.samples or not others:
            return latency.slow
        typical = median(others)
        factor = self.limits.factor / 2 if latency.slow else self.limits.factor
        return (
            latency.seconds > factor * typical
            and latency.seconds - typical > _NOTICEABLE_SECONDS[group.stage]
        )

    def _others(self, group: _Group, latency: _Pace, since: float) -> list[float]:
        enough = self.limits.samples
        others = (
            one for one in self._latencies[group].values() if one is not latency and one.heard_since(since)
        )
        return [one.seconds for one in others if len(one.samples) >= enough]

    def _compared(self, group: _Group, latency: _Pace, since: float) -> str:
        others = self._others(group, latency, since)
        against = f", the others {1000 * median(others):.0f} ms" if others else ""
        unit = "1,000 prompt tokens" if group.stage is Stage.FIRST_TOKEN else "token"
        return f"{1000 * latency.seconds:.0f} ms for each {unit}{against}"


class NotSlow:
    """A filter: without the slow ones, while others are left. After those that ask for room."""

    reason = "slower than the others"

    def __init__(self, book: SlowWorkers) -> None:
        self._book = book

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        slow = self._book.names()
        if not slow:
            return members
        return [member for member in members if member.spec.worker_id not in slow] or members
