"""Which workers are slow, against the others of their role. Pure: what happens to requests and a clock in,
the slow ones out.

A worker's pace is the median of its last samples: seconds from placement to the first token for each
1,000 tokens that it computes, and seconds for each token after it. Samples are forgotten after a while; so
a worker that is avoided, and gets no new ones, is tried again.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from llmserve.core.clock import Clock
from llmserve.core.ids import RequestId, WorkerId
from llmserve.router.filters import PlacementRequest
from llmserve.router.plan import Plan
from llmserve.router.worker import Member

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
    samples: deque[tuple[float, float]]  # time, seconds
    slow: bool = False

    def median_since(self, time: float, at_least: int) -> float | None:
        while self.samples and self.samples[0][0] < time:
            self.samples.popleft()
        return median(value for _, value in self.samples) if len(self.samples) >= at_least else None


@dataclass(slots=True)
class _Running:
    plan: Plan
    placed_at: float
    first_token_at: float | None = field(default=None)


class SlowBook:
    def __init__(self, clock: Clock, limits: SlowLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._running: dict[RequestId, _Running] = {}
        self._paces: dict[_Group, dict[WorkerId, _Pace]] = {}
        self._stalled: dict[WorkerId, float] = {}

    def __repr__(self) -> str:
        return f"<SlowBook running={len(self._running)} slow={sorted(self.workers())}>"

    # -- what happens

    def placed(self, request_id: RequestId, plan: Plan) -> None:
        self._running[request_id] = _Running(plan, self._clock.now())

    def first_token(self, request_id: RequestId) -> None:
        running = self._running.get(request_id)
        if running is None or running.first_token_at is not None:
            return
        now = running.first_token_at = self._clock.now()
        thousands = max(running.plan.computed_tokens, _LEAST_PROMPT_TOKENS) / 1000
        worker = running.plan.prefill or running.plan.decode
        self._note(worker, Stage.FIRST_TOKEN, (now - running.placed_at) / thousands)

    def ended(self, request_id: RequestId, output_tokens: int) -> None:
        """However it did; also one that was never placed."""
        running = self._running.pop(request_id, None)
        if running and running.first_token_at is not None and output_tokens >= _LEAST_OUTPUT_TOKENS:
            seconds = self._clock.now() - running.first_token_at
            self._note(running.plan.decode, Stage.LATER_TOKENS, seconds / (output_tokens - 1))

    def stalled(self, worker_id: WorkerId) -> None:
        """A request waited for it in vain."""
        self._stalled[worker_id] = self._clock.now()

    # -- what follows

    def workers(self) -> Mapping[WorkerId, str]:
        """The slow ones, and why."""
        since = self._clock.now() - self._limits.memory_seconds
        self._stalled = {worker: at for worker, at in self._stalled.items() if at > since}
        reasons = dict.fromkeys(self._stalled, "it gave a request no output in time")
        for group, paces in self._paces.items():
            for worker_id, pace in paces.items():
                if pace.slow and pace.median_since(since, 1) is None:
                    pace.slow = False
                if pace.slow:
                    reasons[worker_id] = f"slow at {group.stage}: {self._compared(group, worker_id)}"
        return reasons

    # -- parts

    def _note(self, worker: Member, stage: Stage, seconds: float) -> None:
        group = _Group(worker.spec.model, worker.spec.role, stage)
        paces = self._paces.setdefault(group, {})
        pace = paces.setdefault(worker.spec.worker_id, _Pace(deque(maxlen=self._limits.remembered)))
        pace.samples.append((self._clock.now(), seconds))
        pace.slow = self._judged(group, worker.spec.worker_id, pace)

    def _judged(self, group: _Group, worker_id: WorkerId, pace: _Pace) -> bool:
        since = self._clock.now() - self._limits.memory_seconds
        own = pace.median_since(since, self._limits.samples)
        others = list(self._others(group, worker_id, since))
        if own is None or not others:
            return pace.slow
        typical = median(others)
        factor = self._limits.factor / 2 if pace.slow else self._limits.factor
        return own > factor * typical and own - typical > _NOTICEABLE_SECONDS[group.stage]

    def _others(self, group: _Group, worker_id: WorkerId, since: float) -> Iterator[float]:
        for other, pace in self._paces[group].items():
            value = pace.median_since(since, self._limits.samples)
            if other != worker_id and value is not None:
                yield value

    def _compared(self, group: _Group, worker_id: WorkerId) -> str:
        since = self._clock.now() - self._limits.memory_seconds
        own = self._paces[group][worker_id].median_since(since, 1) or 0.0
        others = list(self._others(group, worker_id, since))
        against = f", the others {1000 * median(others):.0f} ms" if others else ""
        unit = "1,000 prompt tokens" if group.stage is Stage.FIRST_TOKEN else "token"
        return f"{1000 * own:.0f} ms for each {unit}{against}"


class NotSlow:
    """A filter: without the slow ones, while others are left. After those that ask for room."""

    reason = "slower than the others"

    def __init__(self, book: SlowBook) -> None:
        self._book = book

    def keep(self, members: Sequence[Member], request: PlacementRequest) -> Sequence[Member]:
        slow = self._book.workers()
        if not slow:
            return members
        return [member for member in members if member.spec.worker_id not in slow] or members
