"""The chooser that predicts: it takes the placement that costs the fewest seconds. Pure.

Only the best few workers of each role are paired: all pairs of a hundred workers each would take longer
than they could save.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from heapq import nsmallest
from itertools import product
from operator import attrgetter, itemgetter
from typing import NamedTuple

from llmserve.core.clock import Clock
from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.router.placement.cost import CostForecast, PromptCost
from llmserve.router.placement.planner import Candidate, CostParts, PlacementRequest, Plan, WorkerChoices
from llmserve.router.workers.speed import WorkerSpeeds
from llmserve.router.workers.worker import ClusterMember

_BEST_OF_EACH = 4
_CANDIDATES = 3
# What predictions cannot tell apart is decided at random.
_ALIKE_RATIO, _ALIKE_SECONDS = 1.02, 0.0005


class _Option(NamedTuple):
    """One way to place a request. seconds: options are compared by it. tokens: prompt tokens to compute."""

    seconds: float
    prefill: ClusterMember | None
    decode: ClusterMember
    tokens: int
    parts: CostParts


# Times the fair share. Requests over the whole run stay below 1.5 times, with what chance adds.
_BOUND = 1.3
_REMEMBERED_EACH = 16.0  # placements for each worker
_LARGEST_UNIT = 1e12


class PlacementBalance:
    """Counts the placements of one group of workers, and names those with more than their share lately. Older
    placements count less: the latest one counts `_unit`, which grows, so that no older count has to change.

    A worker's cache draws requests to it, and each of them fills the cache further: without a bound, one
    worker would get all requests with a popular prompt for as long as it has no queue. A worker over the
    bound is judged as if it had nothing cached; its speed and its queue count as before."""

    def __init__(self) -> None:
        self._counts: dict[WorkerId, float] = {}
        self._total = 0.0
        self._unit = 1.0

    def placed(self, key: WorkerId, workers: int) -> None:
        """One of so many workers got a request."""
        self._unit /= 1.0 - 1.0 / (_REMEMBERED_EACH * workers + 1)
        self._counts[key] = self._counts.get(key, 0.0) + self._unit
        self._total += self._unit
        if self._unit > _LARGEST_UNIT:
            self._shrink()

    def over(self, workers: int) -> set[WorkerId]:
        """Workers with more than their share. One request more or less never decides."""
        most = _BOUND * self._total / workers + self._unit
        return {key for key, count in self._counts.items() if count > most}

    def _shrink(self) -> None:
        """Rescales the counts, and forgets workers that got nothing for long: workers come and go."""
        scaled = {key: count / self._unit for key, count in self._counts.items()}
        self._counts = {key: count for key, count in scaled.items() if count > 1e-6}
        self._total = sum(self._counts.values())
        self._unit = 1.0


class KvAware:
    """Remembers its choices, so that a cache draws no more than a bounded share (PlacementBalance)."""

    def __init__(self, speeds: WorkerSpeeds, clock: Clock, rng: random.Random) -> None:
        self._speeds, self._clock, self._rng = speeds, clock, rng
        self._balances: dict[tuple[str, WorkerRole], PlacementBalance] = {}

    def choose(self, choices: WorkerChoices, request: PlacementRequest, output_tokens: int) -> Plan | None:
        members = choices.prefill or choices.decode or choices.aggregated
        if not members:
            return None
        forecast = CostForecast(
            request, output_tokens, self._speeds, members[0].spec.kv_shape, self._clock.now()
        )
        look = _Look(forecast, self._crowded(choices))
        options = [*self._whole(choices, look), *self._pairs(choices, look)]
        if not options:
            return None
        options.sort(key=attrgetter("seconds"))
        chosen = self._pick(options)
        self._remember(chosen, choices)
        return _plan(chosen, options)

    # -- parts

    def _whole(self, choices: WorkerChoices, look: "_Look") -> list[_Option]:
        best = self._best(choices.whole, look.whole_seconds)
        return [look.whole(member) for member in best]

    def _pairs(self, choices: WorkerChoices, look: "_Look") -> list[_Option]:
        if not choices.prefill:
            return []
        prefill = map(look.first_leg, self._best(choices.prefill, look.prefill_seconds))
        decode = map(look.second_leg, self._best(choices.decode, look.decode_seconds))
        return [look.pair(first, second) for first, second in product(prefill, decode)]

    def _best(
        self, members: Sequence[ClusterMember], seconds: Callable[[ClusterMember], float]
    ) -> list[ClusterMember]:
        """Among equals, it returns others each time. So few that all are among the best are not compared."""
        start = int(self._rng.random() * len(members))
        turned = [*members[start:], *members[:start]]
        if len(turned) <= _BEST_OF_EACH:
            return turned
        costs = zip(map(seconds, turned), turned, strict=True)
        return [member for _, member in nsmallest(_BEST_OF_EACH, costs, key=itemgetter(0))]

    def _pick(self, options: Sequence[_Option]) -> _Option:
        """Takes one of the best, which come first."""
        limit = options[0].seconds * _ALIKE_RATIO + _ALIKE_SECONDS
        alike = bisect_right(options, limit, key=attrgetter("seconds"))
        return options[int(self._rng.random() * alike)]

    # -- what was chosen before

    def _crowded(self, choices: WorkerChoices) -> frozenset[WorkerId]:
        """Workers that have had more than their share."""
        groups = (choices.prefill, choices.decode, choices.aggregated)
        over = (self._balance(group).over(len(group)) for group in groups if group)
        return frozenset(worker_id for group in over for worker_id in group)

    def _remember(self, chosen: _Option, choices: WorkerChoices) -> None:
        for member in filter(None, (chosen.prefill, chosen.decode)):
            group = choices.of_role(member.spec.role)
            self._balance(group).placed(member.spec.worker_id, len(group))

    def _balance(self, group: Sequence[ClusterMember]) -> PlacementBalance:
        key = (group[0].spec.model, group[0].spec.role)
        spread = self._balances.get(key)
        if spread is None:
            spread = self._balances[key] = PlacementBalance()
        return spread


class _Look:
    """One request at all workers: first the seconds of many, then the parts of a few."""

    def __init__(self, forecast: CostForecast, crowded: frozenset[WorkerId]) -> None:
        self._forecast, self._crowded = forecast, crowded

    def whole_seconds(self, member: ClusterMember) -> float:
        forecast = self._forecast
        prompt = forecast.prompt(member)
        spread = self._whole_spread(member) if member.spec.worker_id in self._crowded else 0.0
        return prompt.seconds + forecast.hold_up(member, prompt) + forecast.decode(member) + spread

    def prefill_seconds(self, member: ClusterMember) -> float:
        seconds = self._forecast.prompt(member).seconds
        return seconds + self._prompt_spread(member) if member.spec.worker_id in self._crowded else seconds

    def decode_seconds(self, member: ClusterMember) -> float:
        forecast = self._forecast
        seconds = forecast.decode(member) + forecast.busy(member) + forecast.typical_handover(member)
        return (
            seconds + forecast.saved_handover(member) if member.spec.worker_id in self._crowded else seconds
        )

    def whole(self, member: ClusterMember) -> _Option:
        forecast = self._forecast
        prompt = forecast.prompt(member)
        spread = self._whole_spread(member) if member.spec.worker_id in self._crowded else 0.0
        parts = CostParts(
            queue=prompt.queue,
            load=prompt.load,
            compute=prompt.compute,
            decode=forecast.decode(member),
            hold_up=forecast.hold_up(member, prompt),
            spread=spread,
        )
        return _Option(sum(parts), None, member, prompt.tokens, parts)

    def first_leg(self, prefill: ClusterMember) -> "_FirstLeg":
        crowded = prefill.spec.worker_id in self._crowded
        return _FirstLeg(
            prefill, self._forecast.prompt(prefill), self._prompt_spread(prefill) if crowded else 0.0
        )

    def second_leg(self, decode: ClusterMember) -> "_SecondLeg":
        seconds = self._forecast.decode(decode) + self._forecast.busy(decode)
        crowded = decode.spec.worker_id in self._crowded
        return _SecondLeg(decode, seconds, self._forecast.saved_handover(decode) if crowded else 0.0)

    def pair(self, first: "_FirstLeg", second: "_SecondLeg") -> _Option:
        prompt = first.prompt
        parts = CostParts(
            queue=prompt.queue,
            load=prompt.load,
            compute=prompt.compute,
            handover=self._forecast.handover(first.member, second.member),
            decode=second.decode,
            spread=first.spread + second.spread,
        )
        return _Option(sum(parts), first.member, second.member, prompt.tokens, parts)

    # -- what a cache would save, on workers that have had more than their share

    def _prompt_spread(self, member: ClusterMember) -> float:
        return max(0.0, self._forecast.cold(member).seconds - self._forecast.prompt(member).seconds)

    def _whole_spread(self, member: ClusterMember) -> float:
        forecast = self._forecast
        warm, cold = forecast.prompt(member), forecast.cold(member)
        held_up = forecast.hold_up(member, cold) - forecast.hold_up(member, warm)
        return max(0.0, cold.seconds - warm.seconds + held_up)


class _FirstLeg(NamedTuple):
    member: ClusterMember
    prompt: PromptCost
    spread: float


class _SecondLeg(NamedTuple):
    member: ClusterMember
    decode: float
    spread: float


def _plan(chosen: _Option, options: Sequence[_Option]) -> Plan:
    others = [option for option in options[:_CANDIDATES] if option is not chosen]
    candidates = tuple(map(_candidate, [chosen, *others][:_CANDIDATES]))
    return Plan(chosen.prefill, chosen.decode, chosen.tokens, candidates)


def _candidate(option: _Option) -> Candidate:
    prefill = option.prefill.spec.worker_id if option.prefill else None
    return Candidate(prefill, option.decode.spec.worker_id, option.parts)
