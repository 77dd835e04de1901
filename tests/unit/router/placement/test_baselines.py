from collections import Counter
from collections.abc import Callable

from llmserve.core.clock import VirtualClock
from llmserve.router.placement.baselines import RoundRobin
from llmserve.router.placement.planner import (
    ActiveRules,
    HasFreeSlot,
    NoPlan,
    PlacementRequest,
    Plan,
    Planner,
)
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import WorkerSpec

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
