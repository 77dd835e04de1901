"""Which versions a worker may get, and for which one its next slot is kept."""

import pytest

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.ids import AdapterDigest
from llmserve.router.workers.adapter_slots import AdapterSlots
from llmserve.router.workers.worker import WorkerSlots

A, B, C, D = (AdapterDigest(name) for name in "abcd")


def slots_with(*placed: AdapterDigest) -> AdapterSlots:
    slots = AdapterSlots()
    for adapter in placed:
        slots.take(adapter)
    return slots


@pytest.mark.parametrize(
    ("placed", "slots", "fits"),
    [((), 0, False), ((), 1, True), ((B,), 1, False), ((B,), 2, True), ((B, C), 2, False), ((B, B), 2, True)],
)
def test_one_that_is_not_placed_needs_a_slot(placed: tuple[AdapterDigest], slots: int, fits: bool) -> None:
    assert slots_with(*placed).fits(A, slots) is fits


def test_one_that_is_placed_always_fits() -> None:
    assert slots_with(A, B).fits(A, 2)
    assert slots_with(A, B).fits(A, 1), "requests that an earlier router placed may be too many"


def test_a_slot_is_given_back_with_the_last_request() -> None:
    slots = slots_with(A, A)
    slots.give_back(A)
    assert (A in slots, len(slots)) == (True, 1)
    slots.give_back(A)
    assert (A in slots, len(slots)) == (False, 0)
    assert slots.fits(B, 1)
    with pytest.raises(KeyError):
        slots.give_back(A)


def test_the_one_with_the_fewest_requests_makes_room() -> None:
    slots = slots_with(A, A, B, C, C)
    assert slots.fewest_requests == 1
    slots.keep(D)
    assert slots.kept_for == D
    assert [slots.fits(one, 3) for one in (A, B, C, D)] == [True, False, True, False]
    slots.give_back(B)
    assert [slots.fits(one, 3) for one in (A, B, C, D)] == [True, False, True, True]
    slots.take(D)
    assert slots.kept_for == BASE_MODEL
    assert [slots.fits(one, 3) for one in (A, B, C, D)] == [True, False, True, True]


def test_a_slot_that_another_frees_is_kept_as_well() -> None:
    slots = slots_with(A, B, B)
    slots.keep(D)
    slots.take(A)
    slots.give_back(B)
    slots.give_back(B)
    assert [slots.fits(one, 2) for one in (A, B, C, D)] == [False, False, False, True]
    slots.take(D)
    assert slots.fits(A, 2), "it need not leave any more"


def test_nothing_is_kept_for_one_that_wants_none_any_more() -> None:
    slots = slots_with(A)
    slots.keep(D)
    slots.forgo(C)
    assert slots.kept_for == D
    slots.forgo(D)
    assert (slots.kept_for, slots.fits(A, 1)) == (BASE_MODEL, True)


def test_one_slot_at_a_time_is_kept() -> None:
    slots = slots_with(A, B)
    slots.keep(D)
    with pytest.raises(AssertionError):
        slots.keep(C)


def test_a_worker_counts_versions_beside_requests() -> None:
    slots = WorkerSlots()
    slots.take()
    slots.take(A)
    slots.take(A)
    assert (slots.placed_requests, len(slots.adapters)) == (3, 1)
    slots.adapters.check_integrity([A, A])
    slots.give_back(A)
    slots.give_back()
    assert (slots.placed_requests, len(slots.adapters)) == (1, 1)
    slots.give_back(A)
    assert (slots.placed_requests, len(slots.adapters)) == (0, 0)


def test_wrong_counts_are_noticed() -> None:
    slots = slots_with(A, B)
    slots.check_integrity([A, B])
    for placed in ([A], [A, A, B], [A, B, C]):
        with pytest.raises(AssertionError):
            slots.check_integrity(placed)
