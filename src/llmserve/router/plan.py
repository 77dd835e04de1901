"""Where a request goes: a prefill and a decode worker, or one worker for both."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.router.filters import Filter, PlacementRequest
from llmserve.router.membership import Membership
from llmserve.router.scorers import Scorer
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


@dataclass(frozen=True, slots=True)
class Plan:
    """prefill None: decode does both. candidates: the best ones, the chosen one first; none when nothing
    was predicted."""

    prefill: Member | None
    decode: Member
    candidates: tuple[Candidate, ...] = ()


class NoPlan(Enum):
    BLOCKED = "blocked"  # this request has no place now; another may have one
    FULL = "full"  # no request has


@dataclass(frozen=True, slots=True)
class _Choice:
    member: Member
    score: float


class Planner:
    """scorers: pairs of weight and scorer. Equal scores are decided by rng."""

    def __init__(
        self,
        membership: Membership,
        *,
        filters: Sequence[Filter],
        scorers: Sequence[tuple[float, Scorer]],
        rng: random.Random,
    ) -> None:
        self._membership = membership
        self._filters = filters
        self._scorers = scorers
        self._rng = rng

    def plan(self, request: PlacementRequest) -> Plan | NoPlan:
        request = self._without_hopeless_exclusions(request)
        decode = self._best(WorkerRole.DECODE, request)
        prefill = self._best(WorkerRole.PREFILL, request) if decode else None
        single = self._best(WorkerRole.AGGREGATED, request)
        if decode and prefill and (not single or min(decode.score, prefill.score) >= single.score):
            return Plan(prefill.member, decode.member)
        return Plan(None, single.member) if single else self._no_plan(request)

    def _best(self, role: WorkerRole, request: PlacementRequest) -> _Choice | None:
        members = self._membership.available(request.model, role)
        for rule in self._filters:
            members = rule.keep(members, request)
        if not members:
            return None
        totals = self._totals(members, request)
        best = max(totals)
        ties = [member for member, total in zip(members, totals, strict=True) if total == best]
        return _Choice(ties[int(self._rng.random() * len(ties))], best)

    def _totals(self, members: Sequence[Member], request: PlacementRequest) -> list[float]:
        totals = [0.0] * len(members)
        for weight, scorer in self._scorers:
            scores = scorer.scores(members, request)
            totals = [total + weight * score for total, score in zip(totals, scores, strict=True)]
        return totals

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
        return PlacementRequest(request.model, request.prompt_tokens, kept)

    def _avoidable(self, role: WorkerRole, request: PlacementRequest) -> frozenset[WorkerId]:
        """The excluded workers of a role that has others, too."""
        members = self._membership.registered(request.model, role)
        registered = frozenset(m.spec.worker_id for m in members)
        return registered & request.excluded_workers if registered - request.excluded_workers else frozenset()
