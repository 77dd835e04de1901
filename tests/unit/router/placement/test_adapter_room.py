"""An adapter that has waited long gets a slot in each role."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmserve.core.adapters import BASE_MODEL, AdapterReport, AdapterReports, AdapterTier, LoraShape
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.router.placement.adapter_room import AdapterRoom
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.workers.adapter_slots import AdapterSlots
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import WorkerSpec

A, B, C, D = (AdapterDigest(name) for name in "abcd")
REQUEST = PlacementRequest("m", adapter=D)


class Field:
    def __init__(self, clock: VirtualClock, make_spec: Callable[..., WorkerSpec]) -> None:
        self.membership = ClusterMembership(clock, expiry_seconds=9.0)
        self.room, self._make_spec = AdapterRoom(self.membership), make_spec

    def add(self, name: str, *placed: AdapterDigest, slots: int = 2) -> AdapterSlots:
        self.membership.register(replace(self._make_spec(name), lora=LoraShape(slots)))
        member = next(m for m in self.membership if m.spec.worker_id == name)
        for adapter in placed:
            member.slots.take(adapter)
        return member.slots.adapters


@pytest.fixture
def field(clock: VirtualClock, make_spec: Callable[..., WorkerSpec]) -> Field:
    return Field(clock, make_spec)


def test_each_role_without_a_slot_keeps_one_where_the_fewest_wait_for_it(field: Field) -> None:
    prefill = [field.add("prefill-0", A, B), field.add("prefill-1", A)]
    placed = ((A, A, B, B), (A, A, C), (B, B, C, C))
    decode = [field.add(f"decode-{number}", *adapters) for number, adapters in enumerate(placed)]
    field.room.make(REQUEST)
    field.room.make(REQUEST)
    assert [slots.kept_for for slots in prefill] == [BASE_MODEL, BASE_MODEL], "prefill-1 has a slot"
    assert [slots.kept_for for slots in decode] == [BASE_MODEL, D, BASE_MODEL]
    field.room.forgo(PlacementRequest("m", adapter=A))
    field.room.forgo(PlacementRequest("m"))
    assert decode[1].kept_for == D
    field.room.forgo(REQUEST)
    assert decode[1].kept_for == BASE_MODEL


def test_one_that_runs_already_needs_no_slot(field: Field) -> None:
    slots = [field.add("aggregated-0", A, D), field.add("aggregated-1", A, B)]
    field.room.make(REQUEST)
    assert [one.kept_for for one in slots] == [BASE_MODEL, BASE_MODEL]


def test_a_worker_keeps_one_slot_at_a_time(field: Field) -> None:
    slots = [field.add("aggregated-0", A, B), field.add("aggregated-1", A, A, B, B)]
    for adapter in (C, D, AdapterDigest("e")):
        field.room.make(PlacementRequest("m", adapter=adapter))
    assert [one.kept_for for one in slots] == [C, D]


def test_workers_that_cannot_be_used_keep_nothing(field: Field) -> None:
    failed, other = field.add("aggregated-0", A, B), field.add("aggregated-1", A, A, B, B)
    none = field.add("aggregated-2", slots=0)
    field.room.make(replace(REQUEST, excluded_workers=frozenset({WorkerId("aggregated-0")})))
    assert [one.kept_for for one in (failed, other, none)] == [BASE_MODEL, D, BASE_MODEL]


@pytest.mark.parametrize("placed", [(), (A, B)])
def test_a_worker_that_cannot_get_the_adapter_has_no_room_for_it(
    field: Field, placed: tuple[AdapterDigest, ...]
) -> None:
    failed, other = field.add("aggregated-0", *placed), field.add("aggregated-1", A, A, B, B)
    field.membership.rule_out(WorkerId("aggregated-0"), D, out=True)
    field.room.make(REQUEST)
    assert [failed.kept_for, other.kept_for] == [BASE_MODEL, D]


def test_another_worker_keeps_a_slot_when_the_first_is_gone(field: Field) -> None:
    first, other = field.add("aggregated-0", A, B), field.add("aggregated-1", A, A, B, B)
    field.room.make(REQUEST)
    assert [first.kept_for, other.kept_for] == [D, BASE_MODEL]
    field.membership.deregister(WorkerId("aggregated-0"), 1)
    field.room.make(REQUEST)
    assert other.kept_for == D


@pytest.mark.parametrize(
    ("worker", "counts"), [("prefill-0", False), ("decode-0", True), ("aggregated-0", True)]
)
def test_an_adapter_is_loaded_where_it_could_decode(field: Field, worker: str, counts: bool) -> None:
    field.add(worker, D)
    assert field.room.loaded(REQUEST) is counts
    assert not field.room.loaded(replace(REQUEST, adapter=A))


@pytest.mark.parametrize("tier", AdapterTier)
def test_an_idle_slot_counts_as_loaded(field: Field, tier: AdapterTier) -> None:
    field.add("decode-0")
    (member,) = field.membership
    member.hear_reports(AdapterReports((AdapterReport(1, D, tier=tier),)))
    assert field.room.loaded(REQUEST) is (tier is AdapterTier.DEVICE)
