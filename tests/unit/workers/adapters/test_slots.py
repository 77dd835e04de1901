"""Which versions leave their slots for which, who waits, and for how long."""

from collections.abc import Sequence
from math import inf

import pytest

from llmserve.core.ids import AdapterDigest
from llmserve.workers.adapters.slots import DeviceSlots, SlotLeg, SlotMoves

PATIENCE = 5.0
A, B, C, D, E = map(AdapterDigest, "abcde")


class Desk:
    """Does at once what the slots decide. now: the time."""

    def __init__(self, slots: int) -> None:
        self.slots = DeviceSlots(slots, PATIENCE)
        self.now = 100.0
        self.started: list[SlotLeg] = []
        self.log: list[str] = []

    def want(self, digest: AdapterDigest) -> SlotLeg:
        leg = self.slots.want(digest, self.now)
        self.settle()
        return leg

    def leave(self, *legs: SlotLeg) -> None:
        for leg in legs:
            self.slots.leave(leg)
        self.settle()

    def runs(self, leg: SlotLeg) -> bool:
        return leg in self.started

    def settle(self) -> SlotMoves:
        while True:
            moves = self.slots.decide(self.now)
            self.started.extend(moves.starts)
            for digest in moves.unloads:
                self.log.append(f"-{digest}")
                self.slots.unloaded(digest)
            for digest in moves.loads:
                self.log.append(f"+{digest}")
                self.slots.loaded(digest)
            if not (moves.loads or moves.unloads or moves.starts):
                return moves

    def after(self, seconds: float) -> "Desk":
        self.now += seconds
        self.settle()
        return self

    def used_once(self, *digests: AdapterDigest) -> None:
        """One after the other, a second each."""
        for digest in digests:
            self.leave(self.want(digest))
            self.after(1)


def nothing_but(
    starts: Sequence[SlotLeg] = (),
    loads: Sequence[AdapterDigest] = (),
    unloads: Sequence[AdapterDigest] = (),
    again_at: float = inf,
) -> SlotMoves:
    return SlotMoves(tuple(starts), tuple(loads), tuple(unloads), again_at)


# -- one version


def test_a_leg_starts_when_its_version_is_loaded() -> None:
    slots = DeviceSlots(1, PATIENCE)
    leg = slots.want(A, 0.0)
    assert not slots.has(B)
    assert slots.decide(0.0) == nothing_but(loads=[A])
    assert (slots.used, slots.is_loaded(A), slots.has(A)) == (1, False, True)
    assert slots.decide(0.0) == nothing_but()
    slots.loaded(A)
    assert slots.is_loaded(A)
    assert not slots.is_loaded(B)
    assert slots.decide(0.0) == nothing_but(starts=[leg])
    assert slots.decide(0.0) == nothing_but()


def test_legs_of_one_version_share_its_slot_and_its_load() -> None:
    slots = DeviceSlots(2, PATIENCE)
    legs = [slots.want(A, 0.0), slots.want(A, 0.0)]
    assert slots.decide(0.0) == nothing_but(loads=[A])
    legs.append(slots.want(A, 0.0))
    assert slots.legs() == {A: 3}
    slots.loaded(A)
    assert slots.decide(0.0) == nothing_but(starts=legs)
    assert slots.legs() == {A: 3}
    slots.leave(legs[0])
    slots.leave(legs[0])
    assert slots.legs() == {A: 2}


def test_a_version_that_cannot_be_loaded_refuses_its_legs_and_no_others() -> None:
    slots = DeviceSlots(1, PATIENCE)
    legs = [slots.want(A, 0.0), slots.want(B, 0.0), slots.want(A, 0.0)]
    assert slots.decide(0.0).loads == (A,)
    assert slots.failed(A) == [legs[0], legs[2]]
    assert slots.decide(0.0) == nothing_but(loads=[B])
    assert slots.legs() == {B: 1}
    assert not slots.has(A)


def test_a_leg_that_gave_up_is_nobodys_reason_to_load() -> None:
    slots = DeviceSlots(1, PATIENCE)
    slots.leave(slots.want(A, 0.0))
    assert slots.decide(0.0) == nothing_but()


# -- who leaves


def test_the_one_that_was_wanted_longest_ago_leaves() -> None:
    desk = Desk(3)
    desk.used_once(A, B, C, A)
    desk.want(D)
    assert desk.log == ["+a", "+b", "+c", "-b", "+d"]


def test_none_leaves_while_a_slot_is_free() -> None:
    desk = Desk(3)
    desk.used_once(A, B)
    desk.want(C)
    assert desk.log == ["+a", "+b", "+c"]


def test_one_that_runs_does_not_leave() -> None:
    desk = Desk(2)
    running = desk.want(A)
    desk.after(1).used_once(B)
    assert desk.runs(desk.want(C))
    assert desk.log == ["+a", "+b", "-b", "+c"]
    waits = desk.want(D)
    assert not desk.runs(waits)
    desk.leave(running)
    assert desk.runs(waits)
    assert desk.log[4:] == ["-a", "+d"]


def test_nor_does_one_that_still_loads() -> None:
    slots = DeviceSlots(1, PATIENCE)
    slots.leave(slots.want(A, 0.0))
    slots.want(A, 0.0)
    slots.decide(0.0)
    slots.want(B, 1.0)
    assert slots.decide(1.0) == nothing_but(again_at=6.0)


def test_each_that_waits_gets_one_slot_that_leaves() -> None:
    """No more versions leave than slots are wanted, also while they are on their way."""
    desk = Desk(4)
    desk.used_once(A, B, C, D)
    desk.slots.want(E, desk.now)
    assert desk.slots.decide(desk.now) == nothing_but(unloads=[A])
    assert desk.slots.decide(desk.now) == nothing_but()
    desk.slots.want(AdapterDigest("f"), desk.now)
    assert desk.slots.decide(desk.now) == nothing_but(unloads=[B])
    desk.slots.unloaded(A)
    assert desk.slots.decide(desk.now) == nothing_but(loads=[E])


def test_one_that_is_wanted_while_it_leaves_comes_back() -> None:
    desk = Desk(1)
    desk.used_once(A)
    b = desk.slots.want(B, desk.now)
    assert desk.slots.decide(desk.now).unloads == (A,)
    a = desk.slots.want(A, desk.now)
    assert desk.slots.decide(desk.now) == nothing_but(again_at=desk.now + PATIENCE)
    desk.slots.unloaded(A)
    desk.settle()
    assert desk.runs(b)
    assert not desk.runs(a)
    desk.leave(b)
    assert desk.runs(a)


def test_slots_go_in_order_of_arrival() -> None:
    desk = Desk(1)
    first = desk.want(A)
    legs = [desk.after(0.1).want(digest) for digest in (B, C, B, D)]
    desk.leave(first)
    assert [desk.runs(leg) for leg in legs] == [True, False, True, False]
    desk.leave(legs[0])
    assert not desk.runs(legs[1])
    desk.leave(legs[2])
    assert [desk.runs(leg) for leg in legs] == [True, True, True, False]


# -- nobody starves


def stream_of(desk: Desk, digest: AdapterDigest, seconds: float) -> list[SlotLeg]:
    """A leg each second, each of which ends only after the next one has come."""
    legs = [desk.want(digest)]
    while len(legs) <= seconds:
        legs.append(desk.after(1).want(digest))
        desk.leave(legs[-2])
    return legs


def test_a_stream_of_legs_of_one_version_stops_for_a_leg_that_waits_too_long() -> None:
    desk = Desk(1)
    held = desk.want(A)
    cold = desk.want(B)
    since = desk.now
    assert desk.settle().again_at == since + PATIENCE
    desk.after(PATIENCE - 0.1)
    passing = desk.want(A)
    assert desk.runs(passing)
    desk.after(0.1)
    late = desk.want(A)
    assert not desk.runs(late)
    assert desk.settle().again_at == inf
    desk.leave(held)
    assert not desk.runs(cold)
    desk.leave(passing)
    assert desk.runs(cold)
    assert not desk.runs(late)
    desk.leave(cold)
    assert desk.runs(late)


def test_the_one_that_was_wanted_longest_ago_is_stopped_and_stays_stopped() -> None:
    desk = Desk(2)
    a, b = desk.want(A), desk.after(1).want(B)
    cold = desk.want(C)
    desk.after(PATIENCE)
    assert desk.runs(desk.want(B))
    late = desk.want(A)
    assert not desk.runs(late)
    assert desk.runs(desk.after(1).want(B)), "although A was wanted later now"
    assert not desk.runs(desk.want(A))
    desk.leave(a)
    assert desk.runs(cold)
    assert not desk.runs(late)
    desk.leave(b)


def test_no_more_are_stopped_than_legs_wait_too_long() -> None:
    desk = Desk(3)
    for digest in (A, B, C):
        desk.want(digest)
        desk.after(1)
    desk.want(D)
    desk.want(D)
    desk.after(PATIENCE)
    late = [desk.want(digest) for digest in (C, B, A)]
    assert [desk.runs(leg) for leg in late] == [True, True, False]
    desk.after(1).want(B)
    desk.want(E)
    desk.after(PATIENCE)
    assert [desk.runs(desk.want(digest)) for digest in (A, B, C)] == [False, True, False]


def test_when_nobody_waits_any_more_it_goes_on() -> None:
    desk = Desk(1)
    desk.want(A)
    cold = desk.want(B)
    desk.after(PATIENCE)
    late = desk.want(A)
    assert not desk.runs(late)
    desk.leave(cold)
    assert desk.runs(late)


def test_a_stopped_one_goes_on_when_another_slot_came_free() -> None:
    desk = Desk(2)
    a, b = desk.want(A), desk.after(1).want(B)
    cold = desk.want(C)
    desk.after(PATIENCE)
    late = desk.want(A)
    assert not desk.runs(late)
    desk.leave(b)
    assert desk.runs(cold)
    assert desk.runs(late)
    assert "-b" in desk.log
    desk.leave(a)


def test_streams_of_all_slots_leave_room_for_one_that_waits() -> None:
    desk = Desk(1)
    cold = desk.slots.want(B, desk.now + 0.5)
    legs = stream_of(desk, A, 8)
    desk.leave(*legs)
    assert desk.runs(cold)


def test_nobody_decides_again_for_a_wait_that_is_too_long_already() -> None:
    slots = DeviceSlots(1, PATIENCE)
    slots.want(A, 0.0)
    slots.decide(0.0)
    slots.want(B, 0.0)
    slots.want(C, 1.0)
    slots.want(D, 2.0)
    assert slots.decide(PATIENCE) == nothing_but(again_at=PATIENCE + 1)
    assert slots.decide(PATIENCE + 2) == nothing_but()


def test_a_version_runs_its_leg_even_if_others_have_waited_too_long_as_well() -> None:
    desk = Desk(1)
    first = desk.want(A)
    legs = [desk.want(B), desk.want(C)]
    desk.after(2 * PATIENCE).leave(first)
    assert [desk.runs(leg) for leg in legs] == [True, False]
    desk.leave(legs[0])
    assert desk.runs(legs[1])


# -- pins and wishes


def test_a_pinned_one_leaves_last() -> None:
    desk = Desk(2)
    desk.slots.wish(A, near=True, pinned=True)
    desk.settle()
    desk.after(1).used_once(B)
    desk.want(C)
    assert desk.log == ["+a", "+b", "-b", "+c"]
    waits = desk.want(D)
    assert not desk.runs(waits)
    assert desk.settle().again_at == desk.now + PATIENCE
    desk.after(PATIENCE).settle()
    assert desk.runs(waits)
    assert desk.log[4:] == ["-a", "+d"]


def test_a_pinned_one_is_stopped_last() -> None:
    desk = Desk(2)
    desk.slots.wish(A, near=True, pinned=True)
    desk.want(A)
    desk.after(1).want(B)
    desk.want(C)
    desk.after(PATIENCE)
    assert desk.runs(desk.want(A))
    assert not desk.runs(desk.want(B))


def test_when_all_are_pinned_nobody_waits_for_patience() -> None:
    desk = Desk(1)
    desk.slots.wish(A, near=True, pinned=True)
    desk.settle()
    leg = desk.want(B)
    assert desk.runs(leg)
    desk.leave(leg)
    assert desk.log == ["+a", "-a", "+b", "-b", "+a"]


def test_wishes_wait_until_nobody_else_does_and_for_one_another() -> None:
    slots = DeviceSlots(3, PATIENCE)
    slots.wish(A, near=False, pinned=False)
    slots.wish(B, near=False, pinned=False)
    slots.want(C, 0.0)
    assert slots.decide(0.0) == nothing_but(loads=[C])
    assert slots.decide(0.0) == nothing_but()
    slots.loaded(C)
    assert slots.decide(0.0).loads == (A,)
    assert slots.decide(0.0) == nothing_but()
    slots.loaded(A)
    assert slots.decide(0.0) == nothing_but(loads=[B])


def test_a_wish_takes_no_ones_slot_unless_it_is_near() -> None:
    desk = Desk(1)
    desk.used_once(A)
    desk.slots.wish(B, near=False, pinned=False)
    desk.settle()
    assert desk.log == ["+a"]
    desk.slots.wish(B, near=True, pinned=False)
    desk.settle()
    assert desk.log == ["+a", "-a", "+b"]
    desk.slots.wish(C, near=False, pinned=True)
    desk.settle()
    assert desk.log == ["+a", "-a", "+b"]


def test_a_near_wish_goes_first_and_never_for_a_pinned_one_or_one_that_runs() -> None:
    desk = Desk(2)
    desk.slots.wish(A, near=False, pinned=False)
    desk.slots.wish(B, near=True, pinned=True)
    desk.settle()
    assert desk.log == ["+b", "+a"]
    leg = desk.want(A)
    desk.slots.wish(C, near=True, pinned=False)
    desk.settle()
    assert desk.log == ["+b", "+a"]
    desk.leave(leg)
    assert desk.log == ["+b", "+a", "-a", "+c"]


def test_a_wish_is_granted_once() -> None:
    for near in (True, False):
        desk = Desk(1)
        desk.slots.wish(A, near=near, pinned=False)
        desk.settle()
        desk.used_once(B)
        desk.slots.retire(B)
        desk.settle()
        assert desk.log == ["+a", "-a", "+b", "-b"]
        desk.used_once(B)
        assert desk.slots.is_loaded(B), "it was wanted again"


def test_a_near_wish_leaves_after_what_was_wanted_before_and_a_warm_one_before() -> None:
    desk = Desk(2)
    desk.used_once(A)
    desk.slots.wish(B, near=True, pinned=False)
    desk.settle()
    desk.want(C)
    assert desk.log == ["+a", "+b", "-a", "+c"]
    desk = Desk(2)
    desk.used_once(A)
    desk.slots.wish(B, near=False, pinned=False)
    desk.settle()
    desk.want(C)
    assert desk.log == ["+a", "+b", "-b", "+c"]


@pytest.mark.parametrize("near", [True, False])
def test_a_wish_that_cannot_be_loaded_is_not_tried_again(near: bool) -> None:
    slots = DeviceSlots(1, PATIENCE)
    slots.wish(A, near=near, pinned=near)
    assert slots.decide(0.0).loads == (A,)
    assert slots.failed(A) == []
    assert slots.decide(0.0) == nothing_but()


def test_one_slot_leaves_for_a_near_wish() -> None:
    desk = Desk(2)
    desk.used_once(A, B)
    desk.slots.wish(C, near=True, pinned=False)
    assert desk.slots.decide(desk.now) == nothing_but(unloads=[A])
    assert desk.slots.decide(desk.now) == nothing_but()
    desk.slots.unloaded(A)
    assert desk.slots.decide(desk.now) == nothing_but(loads=[C])


def test_a_pin_ends_with_the_next_wish() -> None:
    desk = Desk(2)
    desk.slots.wish(A, near=True, pinned=True)
    desk.settle()
    desk.used_once(B)
    desk.slots.wish(A, near=False, pinned=False)
    desk.after(1).used_once(A, B)
    desk.want(C)
    assert desk.log == ["+a", "+b", "-a", "+c"]


# -- gone for good


def test_a_retired_one_leaves_when_its_last_leg_has_ended() -> None:
    desk = Desk(2)
    desk.slots.wish(A, near=True, pinned=True)
    leg = desk.want(A)
    desk.slots.retire(A)
    desk.settle()
    assert desk.slots.is_loaded(A)
    desk.leave(leg)
    assert desk.log == ["+a", "-a"]
    assert not desk.slots.has(A)


def test_legs_that_came_before_still_run() -> None:
    desk = Desk(1)
    running = desk.want(B)
    waits = desk.want(A)
    desk.slots.retire(A)
    desk.settle()
    assert desk.slots.has(A)
    desk.leave(running)
    assert desk.runs(waits)
    desk.leave(waits)
    assert not desk.slots.has(A)


def test_the_slot_of_a_retired_one_counts_as_one_that_leaves() -> None:
    desk = Desk(2)
    desk.used_once(A, B)
    desk.slots.retire(B)
    desk.slots.want(C, desk.now)
    assert desk.slots.decide(desk.now) == nothing_but(unloads=[B])


def test_one_that_is_wished_for_again_stays() -> None:
    desk = Desk(1)
    leg = desk.want(A)
    desk.slots.retire(A)
    desk.slots.wish(A, near=False, pinned=False)
    desk.leave(leg)
    assert desk.log == ["+a"]


def test_a_retired_wish_is_none() -> None:
    desk = Desk(1)
    for near in (True, False):
        desk.slots.wish(A, near=near, pinned=False)
        desk.slots.retire(A)
        desk.settle()
    assert desk.log == []
