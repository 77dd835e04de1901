"""A worker never gets more adapters than its engine has slots."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmserve.core.adapters import BASE_MODEL, LoraShape
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.core.request import WorkerRole
from llmserve.router.placement.baselines import RoundRobin
from llmserve.router.placement.filters import HasAdapterSlot, HasFreeSlot
from llmserve.router.placement.planner import (
    ActiveRules,
    Disaggregate,
    NoPlan,
    PlacementRequest,
    Plan,
    Planner,
)
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec

A, B = AdapterDigest("a"), AdapterDigest("b")
MakeSpec = Callable[..., WorkerSpec]


def asks(adapter: AdapterDigest = BASE_MODEL, model: str = "m") -> PlacementRequest:
    return PlacementRequest(model, 10, adapter=adapter)


def spec(make_spec: MakeSpec, name: str, adapter_slots: int = 1) -> WorkerSpec:
    return replace(make_spec(name, slots=4), lora=LoraShape(adapter_slots, 16))


def test_the_filter_asks_for_the_engines_slots(make_spec: MakeSpec) -> None:
    full, free, none = (
        ClusterMember(spec(make_spec, f"decode-{n}", slots), WorkerSlots(), 0.0)
        for n, slots in enumerate((1, 2, 0))
    )
    for member in (full, free):
        member.slots.take(B)
    members = [full, free, none]
    rule = HasAdapterSlot()
    assert rule.keep(members, asks(A)) == [free]
    assert rule.keep(members, asks(B)) == [full, free]
    assert rule.keep(members, asks()) is members


class Field:
    """A prefill and a decode worker of one adapter slot and four seats each."""

    def __init__(self, clock: VirtualClock, make_spec: MakeSpec) -> None:
        self.membership = ClusterMembership(clock, expiry_seconds=4.0)
        for name in ("prefill-0", "decode-0"):
            self.membership.register(spec(make_spec, name))
        rules = ActiveRules((HasFreeSlot(), HasAdapterSlot()), RoundRobin(), Disaggregate.ALWAYS)
        self.planner = Planner(self.membership, rules)

    def take(self, role: WorkerRole, adapter: AdapterDigest, requests: int = 1) -> None:
        (member,) = self.membership.available("m", role)
        for _ in range(requests):
            member.slots.take(adapter)


@pytest.fixture
def field(clock: VirtualClock, make_spec: MakeSpec) -> Field:
    return Field(clock, make_spec)


@pytest.mark.parametrize("role", [WorkerRole.PREFILL, WorkerRole.DECODE])
def test_both_sides_need_a_slot(field: Field, role: WorkerRole) -> None:
    field.take(role, A)
    assert field.planner.plan(asks(B)) is NoPlan.NO_SLOT
    assert isinstance(field.planner.plan(asks(A)), Plan)
    assert isinstance(field.planner.plan(asks()), Plan)


@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
def test_an_adapter_that_no_worker_of_a_role_can_get_lacks_more_than_a_slot(field: Field, name: str) -> None:
    for role in (WorkerRole.PREFILL, WorkerRole.DECODE):
        field.take(role, A)
    field.membership.rule_out(WorkerId(name), B, out=True)
    assert field.planner.plan(asks(B)) is NoPlan.BLOCKED
    field.membership.rule_out(WorkerId(name), B, out=False)
    assert field.planner.plan(asks(B)) is NoPlan.NO_SLOT


def test_where_nobody_has_a_place_the_round_ends(field: Field) -> None:
    """The seats of a role are all taken, so requests without an adapter wait as well."""
    field.take(WorkerRole.DECODE, A, requests=4)
    assert field.planner.plan(asks(B)) is NoPlan.FULL
    assert field.planner.plan(asks()) is NoPlan.FULL


def test_a_worker_of_another_model_takes_no_adapter_of_this_one(field: Field, make_spec: MakeSpec) -> None:
    field.membership.register(make_spec("aggregated-0", model="other"))
    field.take(WorkerRole.DECODE, A, requests=4)
    assert field.planner.plan(asks(B)) is NoPlan.FULL


def test_a_worker_for_whole_requests_is_enough(clock: VirtualClock, make_spec: MakeSpec) -> None:
    membership = ClusterMembership(clock, expiry_seconds=4.0)
    membership.register(spec(make_spec, "aggregated-0"))
    planner = Planner(membership, ActiveRules((HasAdapterSlot(),), RoundRobin(), Disaggregate.ALWAYS))
    (member,) = membership.available("m", WorkerRole.AGGREGATED)
    member.slots.take(A)
    assert planner.plan(asks(B)) is NoPlan.NO_SLOT
