"""Where a request goes: a prefill and a decode worker, or one worker for both.

The planner says who may take it; a chooser (kv_aware.py, baselines.py) says who does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol

from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.router.filters import Filter, PlacementRequest
from llmserve.router.membership import Membership
from llmserve.router.worker import Member


class Parts(NamedTuple):
    """Predicted seconds of a placement (docs/placement.md). hold_up: those for which running requests wait.
    spread: what a worker's cache would save, when it has had more than its share."""

    queue: float = 0.0
    load: float = 0.0
    compute: float = 0.0
    handover: float = 0.0
    decode: float = 0.0
    hold_up: float = 0.0
    spread: float = 0.0


class Candidate(NamedTuple):
    """One way to place a request, for whoever wants to know why it was placed so."""

    prefill: WorkerId | None
    decode: WorkerId
    parts: Parts

    @property
    def total_seconds(self) -> float:
        """What placements are compared by."""
        return sum(self.parts)

    @property
    def first_token_seconds(self) -> float:
        return self.parts.queue + self.parts.load + self.parts.compute


@dataclass(frozen=True, slots=True)
class Plan:
    """prefill None: decode does both. computed_tokens: of the prompt, what is expected not to be found
    anywhere. candidates: the best ones, the chosen one first; none when nothing was predicted."""

    prefill: Member | None
    decode: Member
    computed_tokens: int = 0
    candidates: tuple[Candidate, ...] = ()

    @property
    def predicted(self) -> Candidate | None:
        return self.candidates[0] if self.candidates else None


class NoPlan(Enum):
    BLOCKED = "blocked"  # this request has no place now; another may have one
    FULL = "full"  # no request has


class Disaggregate(StrEnum):
    """May a decode worker run a whole request? Where there is no prefill worker, AUTO lets it."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Choices(NamedTuple):
    """Those that may take a request now. alone: a decode worker may do it all."""

    prefill: Sequence[Member]
    decode: Sequence[Member]
    aggregated: Sequence[Member]
    alone: bool

    def of_role(self, role: WorkerRole) -> Sequence[Member]:
        by_role = {WorkerRole.PREFILL: self.prefill, WorkerRole.DECODE: self.decode}
        return by_role.get(role, self.aggregated)

    @property
    def whole(self) -> Sequence[Member]:
        """Those that may do it all."""
        return [*self.aggregated, *self.decode] if self.alone else self.aggregated


class Chooser(Protocol):
    def choose(self, choices: Choices, request: PlacementRequest, output_tokens: int) -> Plan | None:
        """output_tokens: how long the answer is expected to be. None: none of the choices is enough."""


@dataclass(frozen=True, slots=True)
class Rules:
    """filters: which workers may take a request. chooser: which of them does."""

    filters: Sequence[Filter]
    chooser: Chooser
    disaggregate: Disaggregate = Disaggregate.AUTO


class Planner:
    """rules: others may take their place at any time."""

    def __init__(self, membership: Membership, rules: Rules) -> None:
        self._membership, self.rules = membership, rules

    def plan(self, request: PlacementRequest, output_tokens: int = 0) -> Plan | NoPlan:
        """output_tokens: how long the answer is expected to be."""
        avoided = self._without_hopeless_exclusions(request)
        plan = self.rules.chooser.choose(self._choices(avoided), avoided, output_tokens)
        return plan or self._no_plan(request)

    def not_taken(self, request: PlacementRequest) -> Mapping[WorkerId, str]:
        """Why workers of the model cannot take it now, in words. Looks at all of them: for people who ask."""
        request = self._without_hopeless_exclusions(request)
        members = [m for m in self._membership if m.spec.model == request.model]
        reasons = {m.spec.worker_id: self._reason(m, request) for m in members}
        return {worker_id: reason for worker_id, reason in reasons.items() if reason}

    def _reason(self, member: Member, request: PlacementRequest) -> str:
        if member.reason:
            return f"{member.state}: {member.reason}"
        return next((rule.reason for rule in self.rules.filters if not rule.keep([member], request)), "")

    def _choices(self, request: PlacementRequest) -> Choices:
        prefill: Sequence[Member] = ()
        if self.rules.disaggregate is not Disaggregate.NEVER:
            prefill = self._kept(WorkerRole.PREFILL, request)
        decode, aggregated = (
            self._kept(WorkerRole.DECODE, request),
            self._kept(WorkerRole.AGGREGATED, request),
        )
        return Choices(prefill, decode, aggregated, self._alone(prefill, request.model))

    def _alone(self, prefill: Sequence[Member], model: str) -> bool:
        """Not while all prefill workers are full: what they are there for would come to decode."""
        if self.rules.disaggregate is not Disaggregate.AUTO:
            return self.rules.disaggregate is Disaggregate.NEVER
        return bool(prefill) or not self._membership.available(model, WorkerRole.PREFILL)

    def _kept(self, role: WorkerRole, request: PlacementRequest) -> Sequence[Member]:
        members = self._membership.available(request.model, role)
        for rule in self.rules.filters:
            members = rule.keep(members, request)
        return members

    def _no_plan(self, request: PlacementRequest) -> NoPlan:
        """FULL lets the queue stop asking; only safe when every other request would fare alike."""
        alone = self._membership.models() <= {request.model}
        return NoPlan.FULL if alone and not request.excluded_workers else NoPlan.BLOCKED

    def _without_hopeless_exclusions(self, request: PlacementRequest) -> PlacementRequest:
        """Drops the exclusion of a role's only workers: one that failed a request and has been
        heard since is better than none."""
        if not request.excluded_workers:
            return request
        kept = frozenset(worker_id for role in WorkerRole for worker_id in self._avoidable(role, request))
        return replace(request, excluded_workers=kept)

    def _avoidable(self, role: WorkerRole, request: PlacementRequest) -> frozenset[WorkerId]:
        """The excluded workers of a role that has others, too."""
        members = self._membership.registered(request.model, role)
        registered = frozenset(m.spec.worker_id for m in members)
        return registered & request.excluded_workers if registered - request.excluded_workers else frozenset()
