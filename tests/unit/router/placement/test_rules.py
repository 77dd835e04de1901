"""Rules that are made again: what goes on, and what is new."""

import random
from collections.abc import Callable

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.request import EngineLoad
from llmserve.router.placement.filters import NotBackedUp
from llmserve.router.placement.kv_aware import KvAware
from llmserve.router.placement.planner import Disaggregate, PlacementRequest, WorkerChoices
from llmserve.router.placement.rules import PlacementPolicy, PlacementRules
from llmserve.router.workers.speed import SlowLimits, WorkerSpeeds
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec


@pytest.fixture
def placement_rules(clock: VirtualClock) -> PlacementRules:
    return PlacementRules(clock, random.Random(1), WorkerSpeeds(clock, SlowLimits()))


def test_a_chooser_goes_on_while_the_routing_stays_the_same(placement_rules: PlacementRules) -> None:
    """It knows whose turn it is."""
    before = placement_rules.rules(PlacementPolicy("round_robin"))
    after = placement_rules.rules(PlacementPolicy("round_robin", Disaggregate.NEVER, 2.0))
    assert after.chooser is before.chooser
    assert (before.disaggregate, after.disaggregate) == (Disaggregate.AUTO, Disaggregate.NEVER)


def test_another_routing_has_another_chooser(placement_rules: PlacementRules) -> None:
    before = placement_rules.rules(PlacementPolicy("round_robin")).chooser
    assert isinstance(placement_rules.rules(PlacementPolicy("kv_aware")).chooser, KvAware)
    again = placement_rules.rules(PlacementPolicy("round_robin")).chooser
    assert type(again) is type(before)
    assert again is not before, "whose turn it was long ago says nothing"


@pytest.mark.parametrize(("placed", "better"), [(1, "decode-0"), (2, "decode-1")])
def test_free_slots_weigh_twice_what_an_engines_queue_weighs(
    placement_rules: PlacementRules, make_spec: Callable[..., WorkerSpec], placed: int, better: str
) -> None:
    """Of four slots, decode-0 has some taken; the engine of decode-1 is a quarter as quick with its queue."""
    busy, queued = (ClusterMember(make_spec(f"decode-{n}", slots=4), WorkerSlots(), 0.0) for n in range(2))
    busy.slots.placed_requests = placed
    queued.load = EngineLoad(waiting_requests=12)
    chooser = placement_rules.rules(PlacementPolicy("least_loaded")).chooser
    plan = chooser.choose(WorkerChoices((), (), (), (busy, queued)), PlacementRequest("m"), 0)
    assert plan is not None
    assert plan.decode.spec.worker_id == better


def test_the_bound_of_an_engines_queue_is_the_new_one(
    placement_rules: PlacementRules, clock: VirtualClock, make_spec: Callable[..., WorkerSpec]
) -> None:
    member = ClusterMember(make_spec("prefill-0"), WorkerSlots(), heard_at=0.0)
    for _ in range(2):
        member.slots.backlog.add(0.5, clock.now())
    for bound_seconds, taken in ((0.9, False), (1.1, True)):
        filters = placement_rules.rules(PlacementPolicy(engine_queue_seconds=bound_seconds)).filters
        (backed_up,) = (one for one in filters if isinstance(one, NotBackedUp))
        assert bool(backed_up.keep([member], PlacementRequest("m"))) is taken
