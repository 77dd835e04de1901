"""Choosers that predict nothing, to compare with (`scheduling.routing`, and "prefer_loaded" in simulations).
Pure.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmserve.core.request import WorkerRole
from llmserve.router.placement.planner import PlacementRequest, Plan, WorkerChoices
from llmserve.router.workers.worker import ClusterMember


class Scorer(Protocol):
    """Rates how well a worker suits a request: 1 is best, 0 is worst."""

    def scores(self, members: Sequence[ClusterMember], request: PlacementRequest) -> list[float]:
        """Returns one score for each member, in the same order."""


class FreeSlots:
    """The free share of the worker's slots: known at once and exactly."""

    def scores(self, members: Sequence[ClusterMember], request: PlacementRequest) -> list[float]:
        return [1.0 - m.slots.placed_requests / m.spec.max_concurrency for m in members]


class HasAdapter:
    """Whether the worker runs the request's adapter, or has it loaded by its last report."""

    def scores(self, members: Sequence[ClusterMember], request: PlacementRequest) -> list[float]:
        return [float(member.has_loaded(request.adapter)) for member in members]


class ShortEngineQueue:
    """How little waits inside the engine, by its last heartbeat."""

    def scores(self, members: Sequence[ClusterMember], request: PlacementRequest) -> list[float]:
        return [m.spec.max_concurrency / (m.spec.max_concurrency + m.load.waiting_requests) for m in members]


class RoundRobin:
    """Takes each worker of a role in turn; pairs before workers that run whole requests."""

    def __init__(self) -> None:
        self._turns: Counter[WorkerRole] = Counter()

    def choose(self, choices: WorkerChoices, request: PlacementRequest, output_tokens: int) -> Plan | None:
        if choices.prefill and choices.decode:
            return _plan(self._next(choices.prefill), self._next(choices.decode), request)
        return _plan(None, self._next(choices.whole), request) if choices.whole else None

    def _next(self, members: Sequence[ClusterMember]) -> ClusterMember:
        role = members[0].spec.role
        self._turns[role] += 1
        return members[self._turns[role] % len(members)]


@dataclass(frozen=True, slots=True)
class _Scored:
    member: ClusterMember
    score: float


class LeastLoaded:
    """Takes the best score of each role; a pair, unless one worker for both has a better score than the
    worse of the two. scorers: pairs of weight and scorer. rng decides between equal scores."""

    def __init__(self, scorers: Sequence[tuple[float, Scorer]], rng: random.Random) -> None:
        self._scorers, self._rng = scorers, rng

    def choose(self, choices: WorkerChoices, request: PlacementRequest, output_tokens: int) -> Plan | None:
        prefill, decode = self._best(choices.prefill, request), self._best(choices.decode, request)
        single = self._best(choices.aggregated if prefill and decode else choices.whole, request)
        if decode and prefill and (not single or min(decode.score, prefill.score) >= single.score):
            return _plan(prefill.member, decode.member, request)
        return _plan(None, single.member, request) if single else None

    def _best(self, members: Sequence[ClusterMember], request: PlacementRequest) -> _Scored | None:
        if not members:
            return None
        totals = self._totals(members, request)
        best = max(totals)
        ties = [member for member, total in zip(members, totals, strict=True) if total == best]
        return _Scored(ties[int(self._rng.random() * len(ties))], best)

    def _totals(self, members: Sequence[ClusterMember], request: PlacementRequest) -> list[float]:
        totals = [0.0] * len(members)
        for weight, scorer in self._scorers:
            scored = zip(totals, scorer.scores(members, request), strict=True)
            totals = [total + weight * score for total, score in scored]
        return totals


def _plan(prefill: ClusterMember | None, decode: ClusterMember, request: PlacementRequest) -> Plan:
    """Cached tokens do not decide here, but say how much work the request is."""
    computing = (prefill or decode).spec.worker_id
    cached = request.match.cached_tokens(computing, request.prompt_tokens)
    return Plan(prefill, decode, request.prompt_tokens - cached)
