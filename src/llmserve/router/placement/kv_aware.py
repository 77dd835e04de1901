"""The chooser that predicts: it takes the placement that costs the fewest seconds. Pure.

Only the best few workers of each role are paired: all pairs of a hundred workers each would take longer
than they could save.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence, Set
from itertools import product
from operator import attrgetter
from typing import NamedTuple

from llmserve.core.clock import Clock
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.core.request import WorkerRole
from llmserve.router.placement.adapter_cost import NO_ADAPTER, AdapterCost, AdapterForecast
from llmserve.router.placement.adapter_homes import AdapterHomes
from llmserve.router.placement.balance import PlacementBalance
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


class _GroupMemory(NamedTuple):
    """What is remembered of the workers of one model and role."""

    balance: PlacementBalance
    homes: AdapterHomes


class KvAware:
    """Remembers its choices, so that a cache or a loaded adapter draws no more than a bounded share
    (PlacementBalance), and that adapters have as many homes as their demand needs (AdapterHomes)."""

    def __init__(self, speeds: WorkerSpeeds, clock: Clock, rng: random.Random) -> None:
        self._speeds, self._clock, self._rng = speeds, clock, rng
        self._memories: dict[tuple[str, WorkerRole], _GroupMemory] = {}

    def choose(self, choices: WorkerChoices, request: PlacementRequest, output_tokens: int) -> Plan | None:
        members = choices.prefill or choices.decode or choices.aggregated
        if not members:
            return None
        now, crowded = self._clock.now(), self._crowded(choices)
        forecast = CostForecast(request, output_tokens, self._speeds, members[0].spec.kv_shape, now)
        look = _Look(forecast, crowded, self._adapter_forecast(request.adapter, choices, crowded, now))
        options = [*self._whole(choices, look), *self._pairs(choices, look)]
        if not options:
            return None
        options.sort(key=attrgetter("seconds"))
        chosen = self._pick(options)
        self._remember(chosen, choices, request.adapter, now)
        return _plan(chosen, options)

    # -- parts

    def _whole(self, choices: WorkerChoices, look: "_Look") -> list[_Option]:
        best = self._best(choices.whole, look.with_adapter(look.whole_seconds))
        return [look.whole(member) for member in best]

    def _pairs(self, choices: WorkerChoices, look: "_Look") -> list[_Option]:
        if not choices.prefill:
            return []
        prefill = self._best(choices.prefill, look.with_adapter(look.prefill_seconds))
        decode = self._best(choices.decode, look.with_adapter(look.decode_seconds))
        pairs = product(map(look.first_leg, prefill), map(look.second_leg, decode))
        return [look.pair(first, second) for first, second in pairs]

    def _best(
        self, members: Sequence[ClusterMember], seconds: Callable[[ClusterMember], float]
    ) -> list[ClusterMember]:
        """Among equals, it returns others each time. So few that all are among the best are not compared."""
        start = int(self._rng.random() * len(members))
        turned = [*members[start:], *members[:start]]
        if len(turned) <= _BEST_OF_EACH:
            return turned
        return sorted(turned, key=seconds)[:_BEST_OF_EACH]

    def _pick(self, options: Sequence[_Option]) -> _Option:
        """Takes one of the best, which come first."""
        limit = options[0].seconds * _ALIKE_RATIO + _ALIKE_SECONDS
        alike = bisect_right(options, limit, key=attrgetter("seconds"))
        return options[int(self._rng.random() * alike)]

    # -- what was chosen before

    def _crowded(self, choices: WorkerChoices) -> frozenset[WorkerId]:
        """Workers that have had more than their share."""
        groups = (choices.prefill, choices.decode, choices.aggregated)
        over = [self._memory(group).balance.over(len(group)) for group in groups if group]
        return frozenset[WorkerId]().union(*over)

    def _adapter_forecast(
        self, adapter: AdapterDigest, choices: WorkerChoices, crowded: Set[WorkerId], now: float
    ) -> AdapterForecast | None:
        """None: the request has no adapter."""
        if not adapter:
            return None
        homes: set[WorkerId] = set()
        for group in filter(None, (choices.prefill, choices.decode, choices.aggregated)):
            calm = [member for member in group if member.spec.worker_id not in crowded]
            homes |= self._memory(group).homes.of(adapter, calm)
        return AdapterForecast(adapter, self._speeds.adapter_loads, homes, crowded, now)

    def _remember(self, chosen: _Option, choices: WorkerChoices, adapter: AdapterDigest, now: float) -> None:
        for member in filter(None, (chosen.prefill, chosen.decode)):
            group = choices.of_role(member.spec.role)
            memory = self._memory(group)
            memory.balance.placed(member.spec.worker_id, len(group))
            memory.homes.placed(adapter, len(group), now)

    def _memory(self, group: Sequence[ClusterMember]) -> _GroupMemory:
        """group: workers of one model and role, at least one."""
        spec = group[0].spec
        key = spec.model, spec.role
        memory = self._memories.get(key)
        if memory is None:
            memory = self._memories[key] = _GroupMemory(PlacementBalance(), AdapterHomes())
        return memory


class _Look:
    """One request at all workers: first the seconds of many, then the parts of a few."""

    def __init__(
        self, forecast: CostForecast, crowded: Set[WorkerId], adapter: AdapterForecast | None = None
    ) -> None:
        """adapter: forecast of the request's adapter; None: it has none."""
        self._forecast, self._crowded, self._adapter = forecast, crowded, adapter

    def with_adapter(self, seconds: Callable[[ClusterMember], float]) -> Callable[[ClusterMember], float]:
        """Adds the adapter's seconds. Requests without an adapter pay nothing for the question."""
        adapter = self._adapter
        if adapter is None:
            return seconds
        return lambda member: seconds(member) + sum(adapter.at(member))

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
        adapter = self._adapter_cost(member)
        parts = CostParts(
            queue=prompt.queue,
            load=prompt.load,
            compute=prompt.compute,
            decode=forecast.decode(member),
            hold_up=forecast.hold_up(member, prompt),
            spread=spread + adapter.spread,
            adapter=adapter.load,
        )
        return _Option(sum(parts), None, member, prompt.tokens, parts)

    def first_leg(self, prefill: ClusterMember) -> "_FirstLeg":
        crowded = prefill.spec.worker_id in self._crowded
        spread = self._prompt_spread(prefill) if crowded else 0.0
        adapter = self._adapter_cost(prefill)
        return _FirstLeg(prefill, self._forecast.prompt(prefill), spread + adapter.spread, adapter.load)

    def second_leg(self, decode: ClusterMember) -> "_SecondLeg":
        seconds = self._forecast.decode(decode) + self._forecast.busy(decode)
        crowded = decode.spec.worker_id in self._crowded
        spread = self._forecast.saved_handover(decode) if crowded else 0.0
        adapter = self._adapter_cost(decode)
        return _SecondLeg(decode, seconds, spread + adapter.spread, adapter.load)

    def pair(self, first: "_FirstLeg", second: "_SecondLeg") -> _Option:
        prompt = first.prompt
        parts = CostParts(
            queue=prompt.queue,
            load=prompt.load,
            compute=prompt.compute,
            handover=self._forecast.handover(first.member, second.member),
            decode=second.decode,
            spread=first.spread + second.spread,
            adapter=first.adapter,
            decode_adapter=second.adapter,
        )
        return _Option(sum(parts), first.member, second.member, prompt.tokens, parts)

    def _adapter_cost(self, member: ClusterMember) -> AdapterCost:
        return self._adapter.at(member) if self._adapter else NO_ADAPTER

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
    adapter: float


class _SecondLeg(NamedTuple):
    member: ClusterMember
    decode: float
    spread: float
    adapter: float


def _plan(chosen: _Option, options: Sequence[_Option]) -> Plan:
    others = [option for option in options[:_CANDIDATES] if option is not chosen]
    candidates = tuple(map(_candidate, [chosen, *others][:_CANDIDATES]))
    return Plan(chosen.prefill, chosen.decode, chosen.tokens, candidates)


def _candidate(option: _Option) -> Candidate:
    prefill = option.prefill.spec.worker_id if option.prefill else None
    return Candidate(prefill, option.decode.spec.worker_id, option.parts)
