"""How fast workers are, measured from the requests that are placed on them. Pure.

`WorkerSpeeds` hears once of each computed prompt, hand-over and generated answer. Placement reads it:

- Placement predicts seconds with latency models. Each incarnation of a worker has its own
  (WorkerSlots.latency); it starts as a copy of its model's, which learns from all workers. So a new worker
  counts as fast as its peers.
- Placement avoids slow workers: those whose recent median is several times the median of the others of their
  role. Samples expire, so a worker that is avoided, and gets no new samples, is tried again.
- Placement takes the cheaper way to hand KV over (`handovers`), and knows what loading an adapter takes
  (`adapter_loads`).
"""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import NamedTuple

from llmserve.config.schema import Scheduling
from llmserve.core.clock import Clock
from llmserve.core.ids import WorkerId
from llmserve.router.workers.adapter_loads import AdapterLoads
from llmserve.router.workers.handover import HandoverCosts, MeasuredHandover
from llmserve.router.workers.latency import LatencyModel
from llmserve.router.workers.worker import ClusterMember

_LEAST_PROMPT_TOKENS = 256  # a shorter prompt costs a step all the same
_LEAST_ANSWER_TOKENS = 8  # a shorter answer measures the start of decoding rather than its steps
_STALLED = "it gave a request no output in time"


class SpeedStage(StrEnum):
    FIRST_TOKEN = "first token"  # seconds for each 1,000 prompt tokens
    LATER_TOKENS = "later tokens"  # seconds for each token


# Differences that no user notices make no worker slow, in the unit of each stage.
_NOTICEABLE_SECONDS = {SpeedStage.FIRST_TOKEN: 0.1, SpeedStage.LATER_TOKENS: 0.005}


@dataclass(frozen=True, slots=True)
class SlowLimits:
    """factor: a worker is slow above this many times the median of the others, until it is below half of it.
    samples: the fewest of a worker by which it is judged. remembered: the most samples of a worker.
    memory_seconds: the age at which a sample expires."""

    factor: float = Scheduling().slow_worker_factor
    samples: int = 5
    remembered: int = 15
    memory_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class MeasuredSpeed:
    """How long a worker took lately, for people. seconds: its median, in the unit of the stage.
    peers_seconds: that of the other workers of its model and role; None: it or they ran too few requests."""

    stage: SpeedStage
    seconds: float
    peers_seconds: float | None


class _PeerGroup(NamedTuple):
    """Workers that are compared with each other: they do the same."""

    model: str
    role: str
    stage: SpeedStage


@dataclass(slots=True)
class _RecentSpeed:
    """samples: (time, seconds) of one worker, oldest first."""

    samples: deque[tuple[float, float]]
    slow: bool = False
    _median: float | None = None  # of the samples, once somebody has asked for it

    def add(self, now: float, seconds: float, since: float) -> None:
        while self.samples and self.samples[0][0] <= since:
            self.samples.popleft()
        self.samples.append((now, seconds))
        self._median = None

    @property
    def seconds(self) -> float:
        """The median of the samples. Nobody asks for it while a worker has no others to be compared with."""
        if self._median is None:
            self._median = median([value for _, value in self.samples])
        return self._median

    def heard_since(self, time: float) -> bool:
        return bool(self.samples) and self.samples[-1][0] > time


class WorkerSpeeds:
    def __init__(self, clock: Clock, limits: SlowLimits) -> None:
        self.limits = limits
        self.handovers, self.adapter_loads = HandoverCosts(), AdapterLoads()
        self._clock = clock
        self._models: dict[str, LatencyModel] = {}
        self._recent: dict[_PeerGroup, dict[WorkerId, _RecentSpeed]] = {}
        self._slow: set[tuple[_PeerGroup, WorkerId]] = set()  # mostly empty: every placement looks here
        self._stalled: dict[WorkerId, float] = {}

    def __repr__(self) -> str:
        return f"<WorkerSpeeds slow={sorted(self.slow_reasons())}>"

    # -- what happens

    def prompt_computed(
        self, worker: ClusterMember, tokens: int, seconds: float, busy_seconds: float | None
    ) -> None:
        """A worker has just computed this many tokens of a prompt. seconds: since the placement, without the
        queue that was foreseen. busy_seconds: the part in which it computed this prompt; None: unknown."""
        thousands = max(tokens, _LEAST_PROMPT_TOKENS) / 1000
        self._sample(worker, SpeedStage.FIRST_TOKEN, seconds / thousands)
        if busy_seconds is not None:
            for model in self._learning(worker):
                model.prefill.learn(tokens, max(0.0, busy_seconds))

    def handed_over(self, prefill: ClusterMember, decode: ClusterMember, measured: MeasuredHandover) -> None:
        """KV has come from one worker to the other. Pairs of a kind learn together, so a worker's seconds
        count as those that the model's workers would have taken together."""
        if prefill.slots.latency is not None:
            own = prefill.slots.latency.prefill.seconds(measured.computed_tokens)
            typical = self.of_model(prefill.spec.model).prefill.seconds(measured.computed_tokens)
            measured = measured._replace(compute_seconds=measured.compute_seconds * typical / own)
        self.handovers.learn(prefill, decode, measured)

    def answer_generated(
        self, worker: ClusterMember, tokens: int, seconds: float, running: float | None
    ) -> None:
        """A worker has just ended a request that got this many tokens in the time after its first. running:
        requests that decoded there meanwhile, on average; None: unknown."""
        if tokens < _LEAST_ANSWER_TOKENS:
            return
        self._sample(worker, SpeedStage.LATER_TOKENS, seconds / tokens)
        if running is not None:
            for model in self._learning(worker):
                model.decode.learn(running, max(0.0, seconds) / tokens)

    def stalled(self, worker_id: WorkerId) -> None:
        """The worker has just given a request no output in time."""
        self._stalled = self._stalled_since(self._since())  # workers that are gone for good leave this way
        self._stalled[worker_id] = self._clock.now()

    # -- what placement asks

    def of_model(self, model: str) -> LatencyModel:
        """What is known of all workers of a model together."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = LatencyModel()
        return found

    def slow_names(self) -> Set[WorkerId]:
        """The workers to avoid: slow or stalled ones."""
        if not (self._slow or self._stalled):
            return frozenset()
        since = self._since()
        return self._stalled_since(since).keys() | {name for _, name, _ in self._slow_since(since)}

    def stalled_names(self) -> Set[WorkerId]:
        return self._stalled_since(self._since()).keys() if self._stalled else frozenset()

    def slow_reasons(self) -> Mapping[WorkerId, str]:
        """The workers to avoid, each with its reason for people."""
        since = self._since()
        reasons = dict.fromkeys(self._stalled_since(since), _STALLED)
        for group, name, recent in self._slow_since(since):
            reasons[name] = f"slow at {group.stage}: {self._compared(group, recent, since)}"
        return reasons

    def measured(self) -> Mapping[WorkerId, Sequence[MeasuredSpeed]]:
        """What each worker took lately, beside its peers."""
        since, found = self._since(), defaultdict[WorkerId, list[MeasuredSpeed]](list)
        for group, speeds in self._recent.items():
            heard = {name: recent for name, recent in speeds.items() if recent.heard_since(since)}
            judged = sorted(one.seconds for one in heard.values() if self._is_judged(one))
            for name, recent in heard.items():
                peers = _median_without(judged, recent.seconds) if self._is_judged(recent) else None
                found[name].append(MeasuredSpeed(group.stage, recent.seconds, peers))
        return found

    # -- parts

    def _is_judged(self, recent: _RecentSpeed) -> bool:
        return len(recent.samples) >= self.limits.samples

    def _learning(self, worker: ClusterMember) -> tuple[LatencyModel, LatencyModel]:
        """The models that a measurement of this worker belongs to."""
        of_model = self.of_model(worker.spec.model)
        if worker.slots.latency is None:
            worker.slots.latency = of_model.copy()
        return worker.slots.latency, of_model

    def _since(self) -> float:
        """When the oldest sample that counts was taken, at the earliest."""
        return self._clock.now() - self.limits.memory_seconds

    def _stalled_since(self, since: float) -> dict[WorkerId, float]:
        return {worker: at for worker, at in self._stalled.items() if at > since}

    def _slow_since(self, since: float) -> Iterator[tuple[_PeerGroup, WorkerId, _RecentSpeed]]:
        for group, name in self._slow:
            recent = self._recent[group][name]
            if recent.heard_since(since):
                yield group, name, recent

    def _sample(self, worker: ClusterMember, stage: SpeedStage, seconds: float) -> None:
        group, name = _PeerGroup(worker.spec.model, worker.spec.role, stage), worker.spec.worker_id
        speeds = self._recent.setdefault(group, {})
        recent = speeds.get(name)
        now, since = self._clock.now(), self._since()
        if recent is None or not recent.heard_since(since):
            self._forget(group, since)
            recent = speeds[name] = _RecentSpeed(deque(maxlen=self.limits.remembered))
        recent.add(now, seconds, since)
        slow = self._judged(group, recent, since)
        if slow is not recent.slow:
            recent.slow = slow
            (self._slow.add if slow else self._slow.discard)((group, name))

    def _forget(self, group: _PeerGroup, since: float) -> None:
        """Drops the workers without a sample that counts: they may be gone for good."""
        speeds = self._recent[group]
        for name in [name for name, recent in speeds.items() if not recent.heard_since(since)]:
            del speeds[name]
            self._slow.discard((group, name))

    def _judged(self, group: _PeerGroup, recent: _RecentSpeed, since: float) -> bool:
        others = self._others(group, recent, since)
        if not self._is_judged(recent) or not others:
            return recent.slow
        typical = median(others)
        factor = self.limits.factor / 2 if recent.slow else self.limits.factor
        noticeable = recent.seconds - typical > _NOTICEABLE_SECONDS[group.stage]
        return recent.seconds > factor * typical and noticeable

    def _others(self, group: _PeerGroup, recent: _RecentSpeed, since: float) -> list[float]:
        others = (one for one in self._recent[group].values() if one is not recent and one.heard_since(since))
        return [one.seconds for one in others if self._is_judged(one)]

    def _compared(self, group: _PeerGroup, recent: _RecentSpeed, since: float) -> str:
        others = self._others(group, recent, since)
        against = f", the others {1000 * median(others):.0f} ms" if others else ""
        unit = "1,000 prompt tokens" if group.stage is SpeedStage.FIRST_TOKEN else "token"
        return f"{1000 * recent.seconds:.0f} ms for each {unit}{against}"


def _median_without(ordered: Sequence[float], value: float) -> float | None:
    """Returns the median of the others; None: there are none. ordered: smallest first, with the value."""
    at, others = bisect_left(ordered, value), len(ordered) - 1
    if others == 0:
        return None
    low, high = (ordered[index + (index >= at)] for index in ((others - 1) // 2, others // 2))
    return (low + high) / 2
