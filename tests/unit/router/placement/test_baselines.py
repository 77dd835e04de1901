import random
from collections import Counter
from collections.abc import Callable

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import WorkerId
from llmserve.core.request import EngineLoad
from llmserve.router.placement.baselines import FreeSlots, LeastLoaded, RoundRobin, ShortEngineQueue
from llmserve.router.placement.filters import HasFreeSlot
from llmserve.router.placement.planner import (
    ActiveRules,
    NoPlan,
    PlacementRequest,
    Plan,
    Planner,
)
from llmserve.router.prefix.match import PrefixMatch
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec

MakeSpec = Callable[..., WorkerSpec]


def _planner(membership: ClusterMembership) -> Planner:
    return Planner(membership, ActiveRules((HasFreeSlot(),), RoundRobin()))


def test_round_robin_takes_each_in_turn(clock: VirtualClock, make_spec: MakeSpec) -> None:
    membership = ClusterMembership(clock, expiry_seconds=4.0)
    for name in ("prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2"):
        membership.register(make_spec(name))
    planner = _planner(membership)
    plans = [planner.plan(PlacementRequest("m")) for _ in range(12)]
    taken = [plan for plan in plans if isinstance(plan, Plan) and plan.prefill]
    assert Counter(plan.prefill.spec.worker_id for plan in taken if plan.prefill) == {
        "prefill-0": 6,
        "prefill-1": 6,
    }
    assert set(Counter(plan.decode.spec.worker_id for plan in taken).values()) == {4}


def test_round_robin_uses_decode_alone_without_prefill(clock: VirtualClock, make_spec: MakeSpec) -> None:
    membership = ClusterMembership(clock, expiry_seconds=4.0)
    planner = _planner(membership)
    assert planner.plan(PlacementRequest("m")) is NoPlan.FULL
    membership.register(make_spec("decode-0"))
    plan = planner.plan(PlacementRequest("m"))
    assert isinstance(plan, Plan)
    assert (plan.prefill, plan.decode.spec.worker_id) == (None, "decode-0")


def test_round_robin_goes_on_in_the_order_of_registration(clock: VirtualClock, make_spec: MakeSpec) -> None:
    membership = ClusterMembership(clock, expiry_seconds=4.0)
    for number in range(3):
        membership.register(make_spec(f"aggregated-{number}"))
    planner = _planner(membership)
    plans = [planner.plan(PlacementRequest("m")) for _ in range(4)]
    turns = [plan.decode.spec.worker_id[-1] for plan in plans if isinstance(plan, Plan)]
    assert "".join(turns) in "0120120"


def test_scores_are_1_at_best_and_0_at_worst(make_spec: MakeSpec) -> None:
    member, request = ClusterMember(make_spec("decode-0", slots=4), WorkerSlots(), 0.0), PlacementRequest("m")
    assert FreeSlots().scores([member], request) == [1.0]
    assert ShortEngineQueue().scores([member], request) == [1.0]
    member.slots.placed_requests, member.load = 1, EngineLoad(waiting_requests=12)
    assert FreeSlots().scores([member], request) == [0.75]
    assert ShortEngineQueue().scores([member], request) == [0.25]
    member.slots.placed_requests = 4
    assert FreeSlots().scores([member], request) == [0.0]


def test_what_the_chosen_worker_has_cached_is_not_counted_as_work(make_spec: MakeSpec) -> None:
    """Though it was no reason to choose it."""
    membership = ClusterMembership(VirtualClock(), expiry_seconds=4.0)
    membership.register(make_spec("aggregated-0"))
    chooser = LeastLoaded(((1.0, FreeSlots()),), random.Random(1))
    match = PrefixMatch({WorkerId("aggregated-0"): 3}, block_tokens=16)
    plan = Planner(membership, ActiveRules((), chooser)).plan(PlacementRequest("m", 100, match=match))
    assert isinstance(plan, Plan)
    assert plan.computed_tokens == 52
