"""The placement rules that a policy of the manifest asks for."""

import random
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from llmserve.config.schema import Scheduling
from llmserve.core.clock import Clock
from llmserve.router.placement.baselines import (
    FreeSlots,
    HasAdapter,
    LeastLoaded,
    RoundRobin,
    ShortEngineQueue,
)
from llmserve.router.placement.filters import HasAdapterSlot, HasFreeSlot, NotBackedUp, NotExcluded, NotSlow
from llmserve.router.placement.kv_aware import KvAware
from llmserve.router.placement.planner import ActiveRules, Chooser, Disaggregate
from llmserve.router.workers.handover import HandoverPolicy
from llmserve.router.workers.speed import WorkerSpeeds

# What an engine's own queue weighs against free seats: it is a heartbeat old, and partly the same.
_LOAD_SCORERS = ((1.0, FreeSlots()), (0.5, ShortEngineQueue()))
_LOADED_WEIGHT = 10.0  # more than all load scores together

# prefer_loaded: goes first to workers that have the adapter. Only simulations use it: it makes workers hot.
Routing = Literal["kv_aware", "least_loaded", "round_robin", "prefer_loaded"]


_DEFAULTS = Scheduling()
_DISAGGREGATE = Disaggregate(_DEFAULTS.disaggregate)


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """engine_queue_seconds: prompts before an engine beyond this time wait at the router."""

    routing: Routing = _DEFAULTS.routing
    disaggregate: Disaggregate = _DISAGGREGATE
    engine_queue_seconds: float = _DEFAULTS.engine_queue_seconds
    handover: HandoverPolicy = field(default_factory=HandoverPolicy)


class PlacementRules:
    """Builds the rules of each new policy. A chooser is kept while the routing stays the same."""

    def __init__(self, clock: Clock, rng: random.Random, speeds: WorkerSpeeds) -> None:
        self._clock, self._rng, self._speeds = clock, rng, speeds
        self._choosers: dict[Routing, Chooser] = {}

    def rules(self, policy: PlacementPolicy) -> ActiveRules:
        backed_up = NotBackedUp(self._clock, policy.engine_queue_seconds)
        slow = NotSlow(self._speeds.slow_names)
        filters = (NotExcluded(), HasFreeSlot(), HasAdapterSlot(), backed_up, slow)
        return ActiveRules(
            filters,
            self._chooser(policy.routing),
            policy.disaggregate,
            self._speeds.stalled_names,
            partial(self._speeds.handovers.choose, policy.handover),
        )

    def _chooser(self, routing: Routing) -> Chooser:
        if routing not in self._choosers:
            self._choosers = {routing: self._made(routing)}
        return self._choosers[routing]

    def _made(self, routing: Routing) -> Chooser:
        match routing:
            case "kv_aware":
                return KvAware(self._speeds, self._clock, self._rng)
            case "least_loaded":
                return LeastLoaded(_LOAD_SCORERS, self._rng)
            case "prefer_loaded":
                return LeastLoaded(((_LOADED_WEIGHT, HasAdapter()), *_LOAD_SCORERS), self._rng)
            case "round_robin":
                return RoundRobin()
