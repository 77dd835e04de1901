"""Slots that are being written; test_tier.py has what a tier makes of them."""

import numpy as np
import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash
from llmserve.kvstore.blocks import CommitOutcome, PartFill
from llmserve.kvstore.dram.reservations import SlotReservations
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.kvstore.dram.slots import DramCounters, SlotPool
from tests.unit.kvstore.dram.conftest import UNIT, UNITS, WRITER, block, named

KEY = named("a")


class Writing:
    """One block with two parts, reserved for ten seconds."""

    def __init__(self) -> None:
        self.clock, self.counters, self.given_up = VirtualClock(), DramCounters(), list[BlockHash]()
        self.pool = SlotPool(SlabMap(UNITS * UNIT, UNIT), np.zeros(UNITS * UNIT // 4096, np.int64))
        self.reservations = SlotReservations(self.pool, self.clock, self.counters, 60.0, self.given_up.append)
        taken = self.pool.take([UNIT, UNIT])
        assert isinstance(taken, tuple)
        self.slots = taken
        self.reservations.add(WRITER, block("a", UNIT, UNIT), taken, 10.0)

    def commit(self, part: int, checksum: int = 7) -> tuple[CommitOutcome, bool]:
        fill = PartFill(KEY, part, self.slots[part].generation, checksum)
        outcome, whole = self.reservations.commit(fill)
        return outcome, whole is not None

    def check(self, reserved: int, orphans: int) -> None:
        current, fenced = self.reservations.check_integrity()
        assert (len(current), len(fenced)) == (reserved, orphans)
        self.pool.check_integrity(current, fenced)


@pytest.fixture
def writing() -> Writing:
    return Writing()


def test_the_last_part_ends_a_reservation(writing: Writing) -> None:
    assert writing.commit(1) == (CommitOutcome.STORED, False)
    assert writing.commit(0) == (CommitOutcome.STORED, True)
    assert KEY not in writing.reservations
    assert writing.given_up == []


def test_a_part_without_a_checksum_gives_the_block_up(writing: Writing) -> None:
    assert writing.commit(0, checksum=0) == (CommitOutcome.LATE, False)
    assert writing.given_up == [KEY]
    writing.check(reserved=0, orphans=0)


def test_slots_of_a_late_writer_are_orphans_until_it_says_that_it_has_stopped(writing: Writing) -> None:
    writing.commit(0)
    writing.clock.advance(11.0)
    writing.reservations.settle()
    assert (writing.given_up, writing.reservations.orphan_slots, writing.counters.expired) == ([KEY], 1, 1)
    writing.check(reserved=0, orphans=1)
    assert writing.commit(1) == (CommitOutcome.LATE, False)
    writing.check(reserved=0, orphans=0)


def test_an_orphan_whose_writer_is_never_heard_of_comes_back_after_the_quarantine(writing: Writing) -> None:
    for seconds in (11.0, 59.0, 2.0):
        writing.clock.advance(seconds)
        writing.reservations.settle()
    assert (writing.reservations.orphan_slots, writing.counters.written_off) == (0, 2)
    writing.check(reserved=0, orphans=0)


def test_all_of_a_writer_that_is_gone_comes_back_at_once(writing: Writing) -> None:
    writing.reservations.forget(WRITER)
    assert writing.given_up == [KEY]
    assert len(writing.reservations) == 0
    writing.check(reserved=0, orphans=0)


def test_a_commit_of_another_use_of_the_slot_is_late(writing: Writing) -> None:
    fill = PartFill(KEY, 0, writing.slots[0].generation + 1000, 7)
    assert writing.reservations.commit(fill) == (CommitOutcome.LATE, None)
    assert len(writing.reservations) == 1
