"""Reservations, blocks and leases: who finds what, and when slots come back."""

from collections.abc import Iterator

import numpy as np
import pytest

from llmserve.core.ids import LeaseId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.kvstore.blocks import STORE_USER, CommitOutcome, PartFill, ReserveOutcome, Slot
from llmserve.kvstore.dram.slabs import SlabMap
from tests.unit.kvstore.dram.conftest import (
    NO_SLOT,
    READER,
    TENANT,
    UNIT,
    UNITS,
    WRITER,
    Pool,
    block,
    make_pool,
    named,
)


@pytest.fixture(autouse=True)
def _whole_at_the_end(pool: Pool) -> Iterator[None]:
    yield
    pool.dram.check_integrity()


# -- writers


def test_a_block_is_found_once_it_is_committed(pool: Pool) -> None:
    slot = pool.reserve("a", 5000)
    assert (pool.holds("a"), pool.dram.reserved_blocks, pool.dram.writer(named("a"))) == (False, 1, WRITER)
    assert pool.commit("a", slot, checksum=99) is CommitOutcome.STORED
    assert (pool.holds("a"), pool.dram.reserved_blocks, pool.dram.writer(named("a"))) == (True, 0, None)
    assert pool.dram.block(named("a")) == block("a", 5000)
    _, [found] = pool.lease("a")
    assert found == Slot(slot.offset, 5000, slot.generation, 99)
    assert pool.dram.counters.reserved == pool.dram.counters.stored == 1


def test_a_block_of_several_parts_is_stored_with_the_last_one(pool: Pool) -> None:
    outcome, slots = pool.dram.reserve(WRITER, block("a", UNIT, 5000), 10)
    assert (outcome, [slot.length_bytes for slot in slots]) == (ReserveOutcome.RESERVED, [UNIT, 5000])
    last = PartFill(named("a"), 1, slots[1].generation, 8)
    assert pool.dram.commit(last) == (CommitOutcome.STORED, None)
    assert pool.dram.commit(last) == (CommitOutcome.LATE, None), "it is committed already"
    assert not pool.holds("a")
    first = PartFill(named("a"), 0, slots[0].generation, 7)
    assert pool.dram.commit(first) == (CommitOutcome.STORED, block("a", UNIT, 5000))
    _, [found] = pool.dram.lease(READER, [named("a")], 5)
    assert [slot.checksum for slot in found] == [7, 8]
    counters = pool.dram.counters
    assert (counters.reserved, counters.stored, counters.late) == (2, 2, 1)


def test_what_is_there_or_on_its_way_is_not_reserved_again(pool: Pool) -> None:
    pool.store("a")
    pool.reserve("b")
    outcomes = [pool.outcome(key, user=READER) for key in "abc"]
    assert outcomes == [ReserveOutcome.PRESENT, ReserveOutcome.BUSY, ReserveOutcome.RESERVED]


def test_full_and_too_large(pool: Pool) -> None:
    outcomes = [pool.outcome(name) for name in "abcde"]
    assert outcomes == [ReserveOutcome.RESERVED] * 4 + [ReserveOutcome.FULL]
    assert pool.outcome("f", (UNITS + 1) * UNIT) is ReserveOutcome.TOO_LARGE
    assert pool.dram.counters.full == 2
    assert named("f") not in pool.dram.index


def test_a_block_gets_slots_for_all_parts_or_for_none(pool: Pool) -> None:
    pool.store("a")
    assert pool.outcome("b", *[UNIT] * UNITS) is ReserveOutcome.FULL
    assert (pool.used_bytes, pool.dram.counters.reserved, pool.dram.counters.full) == (UNIT, 1, 1)
    assert pool.outcome("b", *[UNIT] * (UNITS - 1)) is ReserveOutcome.RESERVED


def test_without_room_in_the_index_no_slot_is_taken() -> None:
    pool = make_pool(SlabMap(UNITS * UNIT, UNIT), np.zeros(UNITS * UNIT // 4096, np.int64), UNIT)
    pool.store("a")
    assert pool.outcome("b") is ReserveOutcome.FULL
    assert (pool.used_bytes, pool.dram.counters.full) == (UNIT, 0)
    (victim,) = pool.dram.make_room(UNIT, TENANT)
    pool.dram.evict(victim.key)
    assert pool.outcome("b") is ReserveOutcome.RESERVED
    assert pool.dram.make_room(UNIT, TENANT) == [], "what is being written stays"
    pool.dram.check_integrity()


def test_the_charge_of_a_block_is_what_its_parts_take(pool: Pool) -> None:
    assert pool.dram.charge((UNIT, 5000)) == pool.dram.charge((UNIT,)) + pool.dram.charge((5000,))
    assert pool.dram.charge((UNIT,)) == UNIT


def test_a_commit_or_abort_of_anothers_slot_changes_nothing(pool: Pool) -> None:
    slot = pool.reserve("a")
    assert pool.commit("b", slot) is CommitOutcome.LATE
    assert pool.commit("a", Slot(generation=12345)) is CommitOutcome.LATE
    assert pool.commit("a", slot, part=1) is CommitOutcome.LATE
    pool.dram.abort(named("b"))
    assert pool.commit("a", slot) is CommitOutcome.STORED
    pool.dram.abort(named("a"))
    assert pool.holds("a")
    assert pool.commit("a", slot) is CommitOutcome.LATE
    assert (pool.dram.counters.late, pool.dram.counters.aborted) == (4, 0)


def test_an_abort_gives_back_all_slots(pool: Pool) -> None:
    _, slots = pool.dram.reserve(WRITER, block("a", UNIT, UNIT, UNIT), 10)
    pool.commit("a", slots[0])
    pool.dram.abort(named("a"))
    assert (pool.used_bytes, pool.dram.reserved_blocks, pool.dram.counters.aborted) == (0, 0, 2)
    assert named("a") not in pool.dram.index
    assert pool.commit("a", slots[1], part=1) is CommitOutcome.LATE


def test_a_part_that_nobody_wrote_ends_the_reservation(pool: Pool) -> None:
    slot = pool.reserve("a")
    assert pool.commit("a", slot, checksum=0) is CommitOutcome.LATE
    assert (pool.used_bytes, pool.dram.reserved_blocks, pool.dram.counters.late) == (0, 0, 0)


def test_the_checksum_beside_the_slot_counts_when_none_is_given(pool: Pool) -> None:
    pool.dram.slots.noted_checksum = lambda slot: 40 + slot.generation
    slot = pool.reserve("a")
    assert pool.commit("a", slot, checksum=0) is CommitOutcome.STORED
    assert pool.lease("a")[1][0].checksum == 40 + slot.generation


# -- removing


def test_removing_makes_room(pool: Pool) -> None:
    for name in "abcd":
        pool.store(name)
    assert pool.reserve("e") == NO_SLOT
    pool.remove("b")
    pool.remove("x")
    assert pool.reserve("e").generation


def test_what_is_being_written_is_not_removed(pool: Pool) -> None:
    slot = pool.reserve("a")
    pool.remove("a")
    pool.dram.evict(named("a"))
    assert pool.commit("a", slot) is CommitOutcome.STORED


def test_who_follows_hears_what_comes_and_goes(pool: Pool) -> None:
    heard: list[tuple[str, bool]] = []
    pool.dram.held_changed = lambda keys, held: heard.extend((key.decode(), held) for key in keys)
    pool.store("a")
    pool.reserve("b")
    pool.remove("a")
    pool.remove("a")
    assert heard == [("a", True), ("a", False)]


def test_a_leased_block_that_is_removed_stays_for_its_readers_only(pool: Pool) -> None:
    slot = pool.store("a")
    first, _ = pool.lease("a")
    second, _ = pool.lease("a")
    pool.remove("a")
    assert not pool.holds("a")
    assert pool.word(slot) == slot.generation
    assert pool.dram.release(first) is LeaseAnswer.VALID
    assert pool.used_bytes == UNIT
    assert pool.dram.release(second) is LeaseAnswer.VALID
    assert (pool.used_bytes, pool.word(slot)) == (0, 0)
    assert pool.dram.counters.leases_granted == pool.dram.counters.leases_released == 2


def test_a_removed_block_may_be_written_again_beside_its_old_readers(pool: Pool) -> None:
    old = pool.store("a")
    lease, _ = pool.lease("a")
    pool.remove("a")
    new = pool.store("a")
    assert new.offset != old.offset
    pool.dram.check_integrity()
    assert pool.dram.release(lease) is LeaseAnswer.VALID
    assert pool.holds("a")


# -- readers


def test_stored_blocks_are_counted_up_to_the_first_gap(pool: Pool) -> None:
    pool.store("a")
    pool.store("c")
    assert [pool.dram.leading(list(map(named, keys))) for keys in ("ca", "abc", "b", "")] == [2, 1, 0, 0]


def test_leases_are_renewed_end_and_are_remembered(pool: Pool) -> None:
    pool.store("a")
    lease, _ = pool.lease("a", seconds=5)
    pool.clock.advance(4)
    assert pool.dram.renew(lease, 5) is LeaseAnswer.VALID
    pool.clock.advance(4)
    pool.dram.settle()
    assert pool.dram.open_leases == 1
    pool.clock.advance(1)
    assert pool.dram.renew(lease, 5) is LeaseAnswer.ENDED
    assert pool.dram.release(lease) is LeaseAnswer.ENDED
    assert pool.dram.release(LeaseId("pin-77")) is LeaseAnswer.UNKNOWN
    assert (pool.dram.open_leases, pool.dram.counters.leases_expired) == (0, 1)


@pytest.mark.parametrize("pins", [True, False])
def test_a_lease_keeps_its_blocks_in_the_index_if_it_is_to(pool: Pool, pins: bool) -> None:
    pool.store("a")
    lease, _ = pool.dram.lease(READER, [named("a")], 5, pins=pins)
    node = pool.dram.index.find(named("a"))
    assert node is not None
    assert node.pins == pins
    pool.dram.release(lease)
    assert node.pins == 0


def test_the_leases_of_the_store_itself_are_not_those_of_readers(pool: Pool) -> None:
    pool.store("a")
    pool.lease("a", user=STORE_USER)
    assert pool.dram.open_leases == 0
    pool.lease("a")
    assert pool.dram.open_leases == 1


def test_a_reader_that_was_too_slow_sees_another_generation(pool: Pool) -> None:
    slot = pool.store("a")
    pool.lease("a", seconds=5)
    pool.clock.advance(5)
    pool.dram.settle()
    assert pool.word(slot) == slot.generation, "nothing has happened to the block"
    pool.remove("a")
    assert pool.word(slot) == 0
    again = pool.reserve("b")
    assert again.offset == slot.offset
    assert pool.word(slot) == again.generation != slot.generation


def test_who_uses_the_tier(pool: Pool) -> None:
    pool.store("a")
    assert not pool.dram.is_used_by({WRITER, READER})
    lease, _ = pool.lease("a")
    assert (pool.dram.is_used_by({READER}), pool.dram.is_used_by({WRITER})) == (True, False)
    assert not pool.dram.is_used_by(set())
    pool.dram.release(lease)
    pool.reserve("b")
    assert (pool.dram.is_used_by({READER}), pool.dram.is_used_by({WRITER})) == (False, True)


# -- time, and users that are gone


def test_an_abandoned_reservation_is_an_orphan_until_its_quarantine_is_over(pool: Pool) -> None:
    slot = pool.reserve("a", seconds=10)
    pool.clock.advance(10)
    pool.dram.settle()
    assert (pool.dram.orphan_slots, pool.dram.reserved_blocks, pool.used_bytes) == (1, 0, UNIT)
    assert pool.word(slot) == 0, "its writer stops when it looks"
    assert pool.reserve("a", seconds=100).offset != slot.offset, "another may write the block, elsewhere"
    pool.clock.advance(59.5)
    pool.dram.settle()
    assert (pool.dram.orphan_slots, pool.dram.counters.written_off) == (1, 0)
    pool.clock.advance(0.5)
    pool.dram.settle()
    assert (pool.dram.orphan_slots, pool.used_bytes, pool.dram.counters.written_off) == (0, UNIT, 1)
    assert pool.dram.counters.expired == 1


def test_only_the_parts_that_may_still_be_written_are_orphans(pool: Pool) -> None:
    _, slots = pool.dram.reserve(WRITER, block("a", UNIT, UNIT, UNIT), 10)
    pool.commit("a", slots[1], part=1)
    pool.clock.advance(10)
    pool.dram.settle()
    assert (pool.dram.orphan_slots, pool.used_bytes, pool.dram.counters.expired) == (2, 2 * UNIT, 2)
    assert pool.commit("b", slots[0]) is CommitOutcome.LATE
    assert pool.dram.orphan_slots == 2, "that was another block's"
    assert pool.commit("a", slots[0]) is CommitOutcome.LATE
    assert (pool.dram.orphan_slots, pool.used_bytes) == (1, UNIT)


@pytest.mark.parametrize("ends_it", ["commit", "forget"])
def test_an_orphan_comes_back_when_its_writer_has_stopped(pool: Pool, ends_it: str) -> None:
    slot = pool.reserve("a", seconds=1)
    pool.clock.advance(1)
    if ends_it == "commit":
        assert pool.commit("a", slot) is CommitOutcome.LATE
    else:
        pool.dram.forget(READER)
        assert pool.dram.orphan_slots == 1
        pool.dram.forget(WRITER)
    assert (pool.dram.orphan_slots, pool.used_bytes, pool.holds("a")) == (0, 0, False)
    assert pool.commit("a", slot) is CommitOutcome.LATE


def test_a_user_that_is_gone_leaves_nothing_but_its_blocks(pool: Pool) -> None:
    pool.store("a")
    _, slots = pool.dram.reserve(WRITER, block("b", UNIT, UNIT), 10)
    pool.commit("b", slots[0])
    pool.reserve("c", user=READER)
    pool.lease("a", seconds=100, user=WRITER)
    pool.lease("a", seconds=100, user=READER)
    pool.dram.forget(WRITER)
    assert (pool.holds("a"), pool.dram.reserved_blocks, pool.dram.open_leases) == (True, 1, 1)
    assert (pool.used_bytes, pool.dram.counters.leases_expired) == (2 * UNIT, 1)
    assert named("b") not in pool.dram.index
    assert pool.dram.writer(named("c")) == READER


@pytest.mark.parametrize("call", ["reserve", "commit", "lease", "make_room", "evict", "forget"])
def test_every_call_ends_what_is_overdue(pool: Pool, call: str) -> None:
    pool.store("a")
    pool.lease("a", seconds=1)
    pool.clock.advance(1)
    match call:
        case "reserve":
            pool.reserve("b")
        case "commit":
            pool.commit("b", NO_SLOT)
        case "lease":
            pool.lease("a")
        case "make_room":
            pool.dram.make_room(1, TENANT)
        case "evict":
            pool.dram.evict(named("b"))
        case _:
            pool.dram.forget(WRITER)
    assert pool.dram.counters.leases_expired == 1
