"""Which of the available workers may take a request. Filters work on whole lists: that is what
keeps a placement among a hundred workers within tens of microseconds.

Where a request goes: a prefill and a decode worker, or one worker for both.

The planner says who may take it; a chooser (kv_aware.py, baselines.py) says who does.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol

from llmserve.core.clock import Clock
from llmserve.core.errors import NoWorkerAvailable
from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.router.prefix.match import PrefixMatch
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import Backlog, ClusterMember

_PROMPTS_AT_LEAST = 2  # one that is computed, and one that follows it
# Retry-After of a client that waited in vain for a worker: one that was restarted may be there by then.
_RESTART_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What placement knows of a request."""

    model: str
    prompt_tokens: int = 0
    excluded_workers: frozenset[WorkerId] = frozenset()
    match: PrefixMatch = field(default_factory=PrefixMatch)


class Filter(Protocol):
    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        """Those that may take it, in the same order."""


class NotExcluded:
    """Without those that have failed this request before."""

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        if not request.excluded_workers:
            return members
        return [m for m in members if m.spec.worker_id not in request.excluded_workers]


class HasFreeSlot:
    """With fewer requests placed than the engine runs at once."""

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        return [m for m in members if m.slots.placed_requests < m.spec.max_concurrency]


class NotBackedUp:
    """With less than so many seconds of prompts to compute. What waits inside an engine is served as it
    came; what waits at the router, in fair order. One prompt may always wait there: an engine never
    pauses for the router."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        now = self._clock.now()
        return [m for m in members if self._has_room(m.slots.backlog, now)]

    def _has_room(self, backlog: Backlog, now: float) -> bool:
        return len(backlog) < _PROMPTS_AT_LEAST or backlog.seconds(now) < self._seconds


class NotSlow:
    """Keeps the workers that are not slow, while others than the slow ones are left. Comes after the filters
    for room."""

    def __init__(self, slow_names: Callable[[], Set[WorkerId]]) -> None:
        self._slow_names = slow_names

    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        slow = self._slow_names()
        if not slow:
            return members
        return [member for member in members if member.spec.worker_id not in slow] or members


class CostParts(NamedTuple):
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
    parts: CostParts

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
    anywhere. candidates: the best ones, the chosen one first; none when nothing was predicted. note: why one
    worker does both although there should be one for each; empty: that is not so."""

    prefill: ClusterMember | None
    decode: ClusterMember
    computed_tokens: int = 0
    candidates: tuple[Candidate, ...] = ()
    note: str = ""

    @property
    def predicted(self) -> Candidate | None:
        return self.candidates[0] if self.candidates else None


class NoPlan(Enum):
    BLOCKED = "blocked"  # this request has no place now; another may have one
    FULL = "full"  # no request has


class Disaggregate(StrEnum):
    """May one worker run a whole request? AUTO: a decode worker may where that is better, and either may
    where no worker of the other role can be used. ALWAYS: only aggregated ones. NEVER: decode workers do."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


_ROLES = (WorkerRole.PREFILL, WorkerRole.DECODE, WorkerRole.AGGREGATED)
_PARTNERS = {WorkerRole.PREFILL: WorkerRole.DECODE, WorkerRole.DECODE: WorkerRole.PREFILL}


class WorkerChoices(NamedTuple):
    """Those that may take a request now. whole: those that may do it all."""

    prefill: Sequence[ClusterMember]
    decode: Sequence[ClusterMember]
    aggregated: Sequence[ClusterMember]
    whole: Sequence[ClusterMember]

    def of_role(self, role: WorkerRole) -> Sequence[ClusterMember]:
        by_role = {WorkerRole.PREFILL: self.prefill, WorkerRole.DECODE: self.decode}
        return by_role.get(role, self.aggregated)


class Chooser(Protocol):
    def choose(self, choices: WorkerChoices, request: PlacementRequest, output_tokens: int) -> Plan | None:
        """output_tokens: how long the answer is expected to be. None: none of the choices is enough."""


@dataclass(frozen=True, slots=True)
class ActiveRules:
    """filters: which workers may take a request. chooser: which of them does. stuck: names of workers that
    gave requests no output in time."""

    filters: Sequence[Filter]
    chooser: Chooser
    disaggregate: Disaggregate = Disaggregate.AUTO
    stuck: Callable[[], Set[WorkerId]] = frozenset


class Planner:
    """rules: others may take their place at any time."""

    def __init__(self, membership: ClusterMembership, rules: ActiveRules) -> None:
        self._membership, self.rules = membership, rules

    def plan(self, request: PlacementRequest, output_tokens: int = 0) -> Plan | NoPlan:
        """output_tokens: how long the answer is expected to be."""
        avoided = self._without_hopeless_exclusions(request)
        serving = self._serving(request.model)
        plan = self.rules.chooser.choose(self._choices(avoided, serving), avoided, output_tokens)
        if plan is None:
            return self._no_plan(request)
        note = self._note(plan, serving)
        return replace(plan, note=note) if note else plan

    def missing_workers(self, model: str) -> NoWorkerAvailable | None:
        """The error for a request of the model that waited in vain; None: the workers that it needs are
        registered."""
        missing = self._missing_roles(model)
        if not missing:
            return None
        text = f"no {' and no '.join(missing)} worker of model {model} is registered"
        return NoWorkerAvailable(text, retry_after_seconds=_RESTART_SECONDS)

    def _missing_roles(self, model: str) -> list[WorkerRole]:
        """The roles that a request of the model needs and that have no registered worker. Without any
        worker, both."""
        here = {role for role in WorkerRole if self._membership.registered(model, role)}
        pair = (WorkerRole.PREFILL, WorkerRole.DECODE)
        suffices = here.issuperset(pair) if self._needs_pairs else bool(here)
        if suffices or WorkerRole.AGGREGATED in here:
            return []
        return [role for role in pair if role not in here]

    @property
    def _needs_pairs(self) -> bool:
        return self.rules.disaggregate is Disaggregate.ALWAYS

    def _serving(self, model: str) -> Set[WorkerRole]:
        """The roles that can be counted on: those with an available worker that is not stuck. If there is no
        such worker in any role, a stuck one is better than none."""
        here = {role: self._membership.available(model, role) for role in WorkerRole}
        stuck = self.rules.stuck()
        well = {role for role, group in here.items() if any(m.spec.worker_id not in stuck for m in group)}
        return well or {role for role, group in here.items() if group}

    def _choices(self, request: PlacementRequest, serving: Set[WorkerRole]) -> WorkerChoices:
        """A role that cannot be counted on is left out, if the other may do all. One that is only full is
        not: what it is there for would come to the other."""
        prefill, decode, aggregated = (self._kept(role, request, serving) for role in _ROLES)
        if self._needs_pairs:
            return WorkerChoices(prefill, decode, aggregated, aggregated)
        if WorkerRole.DECODE not in serving:
            return WorkerChoices(prefill, (), aggregated, [*aggregated, *prefill])
        if self.rules.disaggregate is Disaggregate.NEVER or WorkerRole.PREFILL not in serving:
            return WorkerChoices((), decode, aggregated, [*aggregated, *decode])
        return WorkerChoices(prefill, decode, aggregated, [*aggregated, *(decode if prefill else ())])

    def _note(self, plan: Plan, serving: Set[WorkerRole]) -> str:
        role, model = plan.decode.spec.role, plan.decode.spec.model
        other = _PARTNERS.get(role)
        is_usual = role is WorkerRole.DECODE and self.rules.disaggregate is Disaggregate.NEVER
        if plan.prefill or other is None or other in serving or is_usual:
            return ""
        away = [m for m in self._membership if (m.spec.role, m.spec.model) == (other, model)]
        reasons = [f"{m.spec.worker_id}: {m.reason or 'it gave a request no output in time'}" for m in away]
        return f"no {other} worker can be used" + (f" ({', '.join(reasons)})" if reasons else "")

    def _kept(
        self, role: WorkerRole, request: PlacementRequest, serving: Set[WorkerRole]
    ) -> Sequence[ClusterMember]:
        if role not in serving and not self._needs_pairs:
            return ()
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
