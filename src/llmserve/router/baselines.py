"""Choosers that do not look at what is cached, to compare with: `scheduling.routing`. Pure."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.core.outcome import WorkerRole
from llmserve.router.filters import PlacementRequest
from llmserve.router.plan import Choices, Plan
from llmserve.router.scorers import Scorer
from llmserve.router.worker import Member


class RoundRobin:
    """Each worker of a role in turn; pairs before workers that do it all."""

    def __init__(self) -> None:
        self._turns: Counter[WorkerRole] = Counter()

    def choose(self, choices: Choices, request: PlacementRequest, output_tokens: int) -> Plan | None:
        if choices.prefill and choices.decode:
            return _plan(self._next(choices.prefill), self._next(choices.decode), request)
        return _plan(None, self._next(choices.whole), request) if choices.whole else None

    def _next(self, members: Sequence[Member]) -> Member:
        role = members[0].spec.role
        self._turns[role] += 1
        return members[self._turns[role] % len(members)]


@dataclass(frozen=True, slots=True)
class _Scored:
    member: Member
    score: float


class LeastLoaded:
    """The best score of each role; a pair, unless one worker for both is better than the worse of the two.
    scorers: pairs of weight and scorer. Equal scores are decided by rng."""

    def __init__(self, scorers: Sequence[tuple[float, Scorer]], rng: random.Random) -> None:
        self._scorers, self._rng = scorers, rng

    def choose(self, choices: Choices, request: PlacementRequest, output_tokens: int) -> Plan | None:
        prefill, decode = self._best(choices.prefill, request), self._best(choices.decode, request)
        single = self._best(choices.aggregated if prefill and decode else choices.whole, request)
        if decode and prefill and (not single or min(decode.score, prefill.score) >= single.score):
            return _plan(prefill.member, decode.member, request)
        return _plan(None, single.member, request) if single else None

    def _best(self, members: Sequence[Member], request: PlacementRequest) -> _Scored | None:
        if not members:
            return None
        totals = self._totals(members, request)
        best = max(totals)
        ties = [member for member, total in zip(members, totals, strict=True) if total == best]
        return _Scored(ties[int(self._rng.random() * len(ties))], best)

    def _totals(self, members: Sequence[Member], request: PlacementRequest) -> list[float]:
        totals = [0.0] * len(members)
        for weight, scorer in self._scorers:
            scores = scorer.scores(members, request)
            totals = [total + weight * score for total, score in zip(totals, scores, strict=True)]
        return totals


def _plan(prefill: Member | None, decode: Member, request: PlacementRequest) -> Plan:
    """What is cached there does not decide, but says how much work it is."""
    computing = (prefill or decode).spec.worker_id
    cached = request.match.cached_tokens(computing, request.prompt_tokens)
    return Plan(prefill, decode, request.prompt_tokens - cached)
