"""Pull or push: what each way of handing KV over has cost lately, and which one costs less. Pure.

A hand-over costs what prefill takes to compute the prompt, which a push makes longer where copying takes from
computing, and what decode then waits until its first token, which a push makes shorter. Both are measured for
both ways, separately for each kind of pair and for prompts of similar length. The cheaper way is taken; now
and then the other one is tried.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import sqrt
from typing import Literal, NamedTuple

from llmserve.config.schema import TransferConfig
from llmserve.core.kv_params import HandoverMode
from llmserve.router.workers.latency import LineFit
from llmserve.router.workers.worker import ClusterMember

_DEFAULTS = TransferConfig()
_OTHER = {HandoverMode.PULL: HandoverMode.PUSH, HandoverMode.PUSH: HandoverMode.PULL}

_TRUSTED_AFTER = 4  # hand-overs of one way
_REMEMBERED = 32  # hand-overs of one way that say how far a measurement is off
# The other way must be cheaper by this factor and this many seconds, and by what both figures may be wrong.
_CLEARLY, _CLEARLY_SECONDS = 0.99, 0.001
# The other way is tried once in so many hand-overs at most: more often until it is trusted, and half as often
# with each trial that was never measured.
_FIRST_TRIALS_EVERY, _TRIALS_EVERY, _TRIALS_LEAST_EVERY = 4, 16, 1024
# Trials may cost this share of the seconds of all hand-overs.
_TRIAL_SHARE = 0.01


class HandoverReason(StrEnum):
    """Why KV is pulled or pushed, for people."""

    SETTING = "transfer.mode says so"
    UNLIKE = "the two workers divide their KV differently"
    SHORT = "the prompt is shorter than transfer.push_min_tokens"
    UNKNOWN = "the other way is not measured yet"
    CHEAPER = "it takes less time"
    UNSURE = "the other way does not surely take less time"
    TRIAL = "it is measured now and then"


class HandoverChoice(NamedTuple):
    """pull_seconds, push_seconds: predicted from the beginning of the computation to decode's first token; 0:
    not measured."""

    mode: HandoverMode
    reason: HandoverReason
    pull_seconds: float = 0.0
    push_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class HandoverPolicy:
    """The manifest's `transfer.mode`, and `transfer.push_min_tokens`, which holds for `auto`."""

    mode: Literal["auto", "pull", "push"] = _DEFAULTS.mode
    push_min_tokens: int = _DEFAULTS.push_min_tokens


class MeasuredHandover(NamedTuple):
    """compute_seconds: time in which prefill computed the prompt. added_seconds: from prefill's token to
    decode's first one."""

    mode: HandoverMode
    computed_tokens: int
    prompt_tokens: int
    compute_seconds: float
    added_seconds: float


def _unknown() -> LineFit:
    return LineFit(0.0, 0.0, typical=1.0, weight=0.0)


@dataclass(slots=True)
class _WayCost:
    """compute: seconds by the tokens that prefill computes. added: seconds by the tokens of the prompt. off:
    mean distance of a measurement from what was expected, in seconds."""

    compute: LineFit = field(default_factory=_unknown)
    added: LineFit = field(default_factory=_unknown)
    off: float = 0.0

    @property
    def doubt(self) -> float:
        """Seconds by which the figure of a trusted way may be wrong: more measurements make it sure."""
        return self.off / sqrt(min(self.added.samples, _REMEMBERED))

    @property
    def trusted(self) -> bool:
        return self.added.samples >= _TRUSTED_AFTER

    def seconds(self, computed_tokens: int, prompt_tokens: int) -> float:
        return self.compute.seconds(computed_tokens) + self.added.seconds(prompt_tokens)

    def learn(self, measured: MeasuredHandover) -> None:
        if known := min(self.added.samples, _REMEMBERED):
            expected = self.seconds(measured.computed_tokens, measured.prompt_tokens)
            distance = abs(measured.compute_seconds + measured.added_seconds - expected)
            self.off += (distance - self.off) / known
        self.compute.learn(measured.computed_tokens, measured.compute_seconds)
        self.added.learn(measured.prompt_tokens, measured.added_seconds)


def _costs() -> Mapping[HandoverMode, _WayCost]:
    return {mode: _WayCost() for mode in HandoverMode}


@dataclass(slots=True)
class HandoverWays:
    """Both ways for prompts of similar length between pairs of a kind. mode: the way that is taken, except by
    trials. It begins with pulls, which hold no blocks of decode while prefill computes. Nothing is drawn at
    random."""

    mode: HandoverMode = HandoverMode.PULL
    _costs: Mapping[HandoverMode, _WayCost] = field(default_factory=_costs)
    _since_trial: int = 0
    _trial_after: int = _FIRST_TRIALS_EVERY
    _spare_seconds: float = 0.0  # what the next trial may cost

    def choose(self, computed_tokens: int, prompt_tokens: int) -> HandoverChoice:
        """Called once for each hand-over."""
        is_known = all(cost.trusted for cost in self._costs.values())
        seconds = {mode: cost.seconds(computed_tokens, prompt_tokens) for mode, cost in self._costs.items()}
        mode = self.mode
        if is_known and seconds[_OTHER[mode]] + self._doubt < _CLEARLY * seconds[mode] - _CLEARLY_SECONDS:
            mode = self.mode = _OTHER[mode]
        excess = seconds[_OTHER[mode]] - seconds[mode] if is_known else 0.0
        reason = _reason(is_known, excess)
        if self._is_time_for_trial(seconds[mode], excess):
            mode, reason = _OTHER[mode], HandoverReason.TRIAL
        return HandoverChoice(mode, reason, seconds[HandoverMode.PULL], seconds[HandoverMode.PUSH])

    @property
    def _doubt(self) -> float:
        return sum(cost.doubt for cost in self._costs.values())

    def learn(self, measured: MeasuredHandover) -> None:
        cost = self._costs[measured.mode]
        cost.learn(measured)
        if measured.mode is not self.mode:
            self._trial_after = _TRIALS_EVERY if cost.trusted else _FIRST_TRIALS_EVERY

    def _is_time_for_trial(self, seconds: float, excess: float) -> bool:
        """Called once for each hand-over. seconds: what it takes the usual way. excess: what a trial would
        take beyond that."""
        self._since_trial += 1
        self._spare_seconds += _TRIAL_SHARE * seconds
        if self._since_trial < self._trial_after or self._spare_seconds < excess:
            return False
        self._since_trial, self._spare_seconds = 0, 0.0
        self._trial_after = min(2 * self._trial_after, _TRIALS_LEAST_EVERY)
        return True


def _reason(is_known: bool, excess: float) -> HandoverReason:
    """excess: what the other way would take beyond this one."""
    if not is_known:
        return HandoverReason.UNKNOWN
    return HandoverReason.UNSURE if excess < 0 else HandoverReason.CHEAPER


def always_pull(
    prefill: ClusterMember, decode: ClusterMember, computed_tokens: int, prompt_tokens: int
) -> HandoverChoice:
    """The choice of `transfer.mode: pull`."""
    return HandoverChoice(HandoverMode.PULL, HandoverReason.SETTING)


class _PairKind(NamedTuple):
    """transport: empty when the pair's is not known. doublings: of the prompt's length."""

    model: str
    transport: str
    doublings: int


class HandoverCosts:
    """The ways of all kinds of pairs: a kind learns from each of its pairs, so that a new worker needs no
    trials of its own, and many workers need no more of them than few."""

    def __init__(self) -> None:
        self._kinds: dict[_PairKind, HandoverWays] = {}

    def choose(
        self,
        policy: HandoverPolicy,
        prefill: ClusterMember,
        decode: ClusterMember,
        computed_tokens: int,
        prompt_tokens: int,
    ) -> HandoverChoice:
        """Called once for each placement on a pair."""
        if policy.mode == "pull":
            return always_pull(prefill, decode, computed_tokens, prompt_tokens)
        if not can_push(prefill, decode):
            return HandoverChoice(HandoverMode.PULL, HandoverReason.UNLIKE)
        if policy.mode == "push":
            return HandoverChoice(HandoverMode.PUSH, HandoverReason.SETTING)
        if prompt_tokens < policy.push_min_tokens:
            return HandoverChoice(HandoverMode.PULL, HandoverReason.SHORT)
        return self._ways(prefill, decode, prompt_tokens).choose(computed_tokens, prompt_tokens)

    def learn(self, prefill: ClusterMember, decode: ClusterMember, measured: MeasuredHandover) -> None:
        """Failures on the way count as what they took: a push that becomes a pull was a slow push."""
        self._ways(prefill, decode, measured.prompt_tokens).learn(measured)

    def _ways(self, prefill: ClusterMember, decode: ClusterMember, prompt_tokens: int) -> HandoverWays:
        link = decode.link_from(prefill.spec.worker_id)
        kind = _PairKind(decode.spec.model, link.transport if link else "", prompt_tokens.bit_length())
        return self._kinds.setdefault(kind, HandoverWays())


def can_push(prefill: ClusterMember, decode: ClusterMember) -> bool:
    """Whether both sides divide their KV in the same way, since a push writes blocks one to one. A pull
    reshapes them."""
    a, b = prefill.spec.kv_shape, decode.spec.kv_shape
    alike = (a.layout, a.block_size_tokens, a.block_bytes, a.tensor_parallel) == (
        b.layout,
        b.block_size_tokens,
        b.block_bytes,
        b.tensor_parallel,
    )
    return alike and bool(prefill.spec.handover_endpoints)
