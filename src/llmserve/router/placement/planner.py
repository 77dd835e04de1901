"""Where a request goes: to a prefill and a decode worker, or to one worker for both.

The planner says which workers may take it (filters.py); a chooser (kv_aware.py, baselines.py) picks among
them.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import NoWorkerAvailable
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.core.kv_params import HandoverMode
from llmserve.core.request import WorkerRole
from llmserve.router.prefix.match import NO_MATCH, PrefixMatch
from llmserve.router.workers.handover import HandoverChoice, always_pull
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import ClusterMember

# Retry-After of a client that waited in vain for a worker: one that was restarted may be there by then.
_RESTART_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What placement knows of a request."""

    model: str
    prompt_tokens: int = 0
    excluded_workers: frozenset[WorkerId] = frozenset()
    match: PrefixMatch = NO_MATCH
    adapter: AdapterDigest = BASE_MODEL


class Filter(Protocol):
    def keep(self, members: Sequence[ClusterMember], request: PlacementRequest) -> Sequence[ClusterMember]:
        """Returns the members that may take the request, in the same order."""


class CostParts(NamedTuple):
    """Predicted seconds of a placement (docs/placement.md). hold_up: time for which running requests wait.
    spread: time that a worker's cache and loaded adapter would save, if the worker has had more than its
    share; and the time of loading an adapter away from its home. adapter, decode_adapter: until the worker
    that computes the prompt, and the other one of a pair, have loaded the adapter."""

    queue: float = 0.0
    load: float = 0.0
    compute: float = 0.0
    handover: float = 0.0
    decode: float = 0.0
    hold_up: float = 0.0
    spread: float = 0.0
    adapter: float = 0.0
    decode_adapter: float = 0.0


class Candidate(NamedTuple):
    """One way to place a request, for people who ask why it was placed as it was."""

    prefill: WorkerId | None
    decode: WorkerId
    parts: CostParts

    @property
    def total_seconds(self) -> float:
        """Placements are compared by this."""
        return sum(self.parts)

    @property
    def first_token_seconds(self) -> float:
        parts = self.parts
        return parts.queue + parts.load + parts.adapter + parts.compute


@dataclass(slots=True)
class Plan:
    """prefill None: decode does both. computed_tokens: prompt tokens that no cache is expected to have.
    candidates: the best ones, the chosen one first; none when nothing was predicted. note: why one worker
    does both although one for each is usual; empty: that is not so. handover: how KV comes to decode; None:
    decode does both. The planner adds the last two to what a chooser has chosen."""

    prefill: ClusterMember | None
    decode: ClusterMember
    computed_tokens: int = 0
    candidates: tuple[Candidate, ...] = ()
    note: str = ""
    handover: HandoverChoice | None = None

    @property
    def predicted(self) -> Candidate | None:
        return self.candidates[0] if self.candidates else None

    @property
    def pushed(self) -> bool:
        """Whether prefill writes the KV while it computes."""
        return self.handover is not None and self.handover.mode is HandoverMode.PUSH


class NoPlan(Enum):
    BLOCKED = "blocked"  # this request has no place now; another may have one
    NO_SLOT = "no slot"  # likewise: workers that may run its adapter run too many others
    FULL = "full"  # no request of its model has


class Disaggregate(StrEnum):
    """May one worker run a whole request? AUTO: a decode worker may where that is faster, and any worker
    may where none of the other role can be used. ALWAYS: only aggregated workers may. NEVER: decode workers
    do."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


_ROLES = (WorkerRole.PREFILL, WorkerRole.DECODE, WorkerRole.AGGREGATED)
_PARTNERS = {WorkerRole.PREFILL: WorkerRole.DECODE, WorkerRole.DECODE: WorkerRole.PREFILL}


class WorkerChoices(NamedTuple):
    """Workers that may take a request now. whole: those that may run all of it."""

    prefill: Sequence[ClusterMember]
    decode: Sequence[ClusterMember]
    aggregated: Sequence[ClusterMember]
    whole: Sequence[ClusterMember]

    @property
    def enough(self) -> bool:
        """Whether a request has a place among them."""
        return bool(self.whole or (self.prefill and self.decode))

    def able_to_get(self, adapter: AdapterDigest) -> "WorkerChoices":
        """Those that have not failed to get the adapter."""
        return WorkerChoices(*([m for m in group if adapter not in m.ruled_out] for group in self))

    def of_role(self, role: WorkerRole) -> Sequence[ClusterMember]:
        by_role = {WorkerRole.PREFILL: self.prefill, WorkerRole.DECODE: self.decode}
        return by_role.get(role, self.aggregated)


class Chooser(Protocol):
    def choose(self, choices: WorkerChoices, request: PlacementRequest, output_tokens: int) -> Plan | None:
        """output_tokens: expected length of the answer. None: no choice is enough."""


ChooseHandover = Callable[[ClusterMember, ClusterMember, int, int], HandoverChoice]


@dataclass(frozen=True, slots=True)
class ActiveRules:
    """filters: leave out workers that may not take a request. chooser: picks one of the rest. stuck:
    returns the workers that gave requests no output in time. handover: chooses between pull and push for a
    pair; it is given the prompt tokens to compute and all of them."""

    filters: Sequence[Filter]
    chooser: Chooser
    disaggregate: Disaggregate = Disaggregate.AUTO
    stuck: Callable[[], Set[WorkerId]] = frozenset
    handover: ChooseHandover = always_pull


class Planner:
    """rules: may be replaced at any time."""

    def __init__(self, membership: ClusterMembership, rules: ActiveRules) -> None:
        self._membership, self.rules = membership, rules

    def plan(self, request: PlacementRequest, output_tokens: int = 0) -> Plan | NoPlan:
        """output_tokens: expected length of the answer."""
        avoided = self._without_hopeless_exclusions(request)
        serving = self._serving(request.model)
        plan = self.rules.chooser.choose(self._choices(avoided, serving), avoided, output_tokens)
        if plan is None:
            return self._no_plan(request, serving)
        if plan.prefill:
            tokens = plan.computed_tokens, request.prompt_tokens
            plan.handover = self.rules.handover(plan.prefill, plan.decode, *tokens)
        else:
            plan.note = self._note(plan, serving)
        return plan

    def obstacle(self, request: PlacementRequest) -> NoPlan | None:
        """Why the request has no place now; None: it has one."""
        avoided = self._without_hopeless_exclusions(request)
        serving = self._serving(request.model)
        return None if self._choices(avoided, serving).enough else self._no_plan(request, serving)

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
        """Roles that can be counted on: they have an available worker that is not stuck. If no role has
        one, roles with a stuck worker count."""
        here, stuck = self._membership.available_roles(model), self.rules.stuck()
        if not stuck:
            return here
        return {role for role in here if self._has_well_worker(model, role, stuck)} or here

    def _has_well_worker(self, model: str, role: WorkerRole, stuck: Set[WorkerId]) -> bool:
        return any(m.spec.worker_id not in stuck for m in self._membership.available(model, role))

    def _choices(self, request: PlacementRequest, serving: Set[WorkerRole]) -> WorkerChoices:
        """Leaves out a role that cannot be counted on, if the other role may run whole requests. A role
        that is only full is kept: its work would come to the other role."""
        prefill, decode, aggregated = [self._kept(role, request, serving) for role in _ROLES]
        if self._needs_pairs:
            return WorkerChoices(prefill, decode, aggregated, _with_prompt_place(aggregated))
        if WorkerRole.DECODE not in serving:
            return WorkerChoices(prefill, (), aggregated, _with_prompt_place(aggregated, prefill))
        if self.rules.disaggregate is Disaggregate.NEVER or WorkerRole.PREFILL not in serving:
            return WorkerChoices((), decode, aggregated, _with_prompt_place(aggregated, decode))
        whole = _with_prompt_place(aggregated, decode if prefill else ())
        return WorkerChoices(prefill, decode, aggregated, whole)

    def _note(self, plan: Plan, serving: Set[WorkerRole]) -> str:
        """Called with a plan in which one worker does both."""
        role, model = plan.decode.spec.role, plan.decode.spec.model
        other = _PARTNERS.get(role)
        is_usual = role is WorkerRole.DECODE and self.rules.disaggregate is Disaggregate.NEVER
        if other is None or other in serving or is_usual:
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
        for rule in self.rules.filters if members else ():
            members = rule.keep(members, request)
        return members

    def _no_plan(self, request: PlacementRequest, serving: Set[WorkerRole]) -> NoPlan:
        """FULL ends the round of the model's queue, so every other request of it must fare alike."""
        if request.adapter:
            others = self._choices(replace(request, adapter=BASE_MODEL), serving)
            if others.enough:
                return NoPlan.NO_SLOT if others.able_to_get(request.adapter).enough else NoPlan.BLOCKED
        return NoPlan.BLOCKED if request.excluded_workers else NoPlan.FULL

    def _without_hopeless_exclusions(self, request: PlacementRequest) -> PlacementRequest:
        """Drops the exclusion of a role's only workers: a worker that failed a request and has been heard
        since is better than none."""
        if not request.excluded_workers:
            return request
        kept = frozenset(worker_id for role in WorkerRole for worker_id in self._avoidable(role, request))
        return replace(request, excluded_workers=kept)

    def _avoidable(self, role: WorkerRole, request: PlacementRequest) -> frozenset[WorkerId]:
        """Excluded workers of a role that has others, too."""
        members = self._membership.registered(request.model, role)
        registered = frozenset(m.spec.worker_id for m in members)
        return registered & request.excluded_workers if registered - request.excluded_workers else frozenset()


def _with_prompt_place(*groups: Sequence[ClusterMember]) -> list[ClusterMember]:
    """Those that may compute a prompt which they decode themselves. Workers that keep no places for decoding
    were asked by HasFreeSlot already: a prompt takes one place, as every request does."""
    return [m for group in groups for m in group if not m.spec.min_decode_slots or m.has_prompt_place]
