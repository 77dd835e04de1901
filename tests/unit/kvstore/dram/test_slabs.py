"""Slots of an arena: alignment, no overlap, and room that comes back for other sizes."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmserve.kvstore.blocks import ReserveOutcome
from llmserve.kvstore.dram.slabs import SlabMap

UNIT = 64 << 10
PAGE = 4096


def fill(slabs: SlabMap, length: int) -> list[int]:
    offsets = []
    while isinstance(offset := slabs.take(length), int):
        offsets.append(offset)
    assert offset is ReserveOutcome.FULL
    return offsets


def fill_any(slabs: SlabMap, length: int) -> list[int]:
    return [] if slabs.slot_bytes(length) > slabs.capacity_bytes else fill(slabs, length)


@pytest.mark.parametrize("length", [1, 4096, 4097, 20_000, 60_000, 100_000, 1 << 20])
def test_an_arena_full_of_one_size_wastes_little_and_is_whole_again(length: int) -> None:
    slabs = SlabMap(64 * UNIT, UNIT)
    offsets = fill(slabs, length)
    size = slabs.slot_bytes(length)
    assert len(offsets) * size >= 0.9 * 64 * UNIT - size
    assert slabs.used_bytes == len(offsets) * size
    slabs.check_integrity(set(offsets))
    for offset in offsets:
        slabs.give(offset)
    slabs.check_integrity(set())
    assert slabs.take(64 * UNIT) == 0, "the whole arena is one slot's again"


@given(st.integers(1, 64), st.integers(1, 64 * UNIT), st.booleans())
def test_there_are_as_many_slots_as_their_shares_fill_the_arena(units: int, length: int, exact: bool) -> None:
    """Whoever counts shares makes room before the arena is full; else nothing would ever leave it."""
    slabs = SlabMap(units * UNIT, UNIT)
    if exact:
        slabs.expect(length)
    assert len(fill_any(slabs, length)) >= slabs.capacity_bytes // slabs.share_bytes(length)


@given(st.integers(1, 1 << 30))
def test_a_slot_is_pages_and_little_larger_than_its_block(length: int) -> None:
    size = SlabMap(UNIT, UNIT).slot_bytes(length)
    assert size % PAGE == 0
    assert length <= size <= max(length * 9 / 8 + PAGE, PAGE)


def test_an_expected_length_has_slots_of_its_own() -> None:
    slabs = SlabMap(64 << 20)
    block = 30 * 96 * 1024
    assert slabs.slot_bytes(block) == 3 << 20
    slabs.expect(block)
    assert slabs.slot_bytes(block) == block
    assert slabs.slot_bytes(block - PAGE) == 3 << 20


def test_too_large_is_not_full() -> None:
    slabs = SlabMap(4 * UNIT, UNIT)
    assert slabs.take(4 * UNIT + 1) is ReserveOutcome.TOO_LARGE
    assert isinstance(slabs.take(1), int)
    assert slabs.take(4 * UNIT) is ReserveOutcome.FULL


def test_a_new_size_finds_room_when_one_slab_is_free() -> None:
    slabs = SlabMap(8 * UNIT, UNIT)
    small = fill(slabs, PAGE)
    assert slabs.take(UNIT) is ReserveOutcome.FULL
    for offset in [offset for offset in small if offset // UNIT == 5]:
        slabs.give(offset)
    assert slabs.take(UNIT) == 5 * UNIT


class Slabs(RuleBasedStateMachine):
    """Any order of takes and gives: slots are in the arena, aligned, and apart."""

    def __init__(self) -> None:
        super().__init__()
        self.slabs = SlabMap(32 * UNIT, UNIT)
        self.taken: dict[int, int] = {}

    @rule(length=st.integers(1, 3 * UNIT))
    def take(self, length: int) -> None:
        offset = self.slabs.take(length)
        if isinstance(offset, int):
            self.taken[offset] = self.slabs.slot_bytes(length)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.taken)))
        self.slabs.give(offset)
        del self.taken[offset]

    @invariant()
    def apart(self) -> None:
        self.slabs.check_integrity(set(self.taken))
        ends = 0
        for offset, size in sorted(self.taken.items()):
            assert offset % PAGE == 0
            assert offset >= ends
            ends = offset + size
        assert ends <= 32 * UNIT
        assert self.slabs.used_bytes == sum(self.taken.values())


TestSlabs = Slabs.TestCase
TestSlabs.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
