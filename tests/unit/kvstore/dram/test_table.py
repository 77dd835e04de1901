"""Reservations, blocks and leases: who finds what, and when slots come back."""

import pytest

from llmserve.core.ids import LeaseId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.kvstore.blocks import NO_SLOT, CommitOutcome, Fill, RemoveOutcome, ReserveOutcome, Slot
from tests.unit.kvstore.dram.conftest import READER, UNIT, UNITS, WRITER, Pool, fill, keys, want


@pytest.fixture(autouse=True)
def _whole_at_the_end(pool: Pool) -> object:
    yield
    pool.table.check_integrity()


def test_a_block_is_found_once_it_is_committed(pool: Pool) -> None:
    slot = pool.reserve("a", 5000)
    assert pool.table.holds(keys("a")) == [False]
    assert pool.table.pin(READER, keys("a"), 5)[1] == [NO_SLOT]
    assert pool.table.commit([fill("a", slot, checksum=99)]) == [CommitOutcome.STORED]
    assert pool.table.holds(keys("ab")) == [True, False]
    _, [found, none] = pool.table.pin(READER, keys("ab"), 5)
    assert found == Slot(slot.offset, 5000, slot.generation, 99)
    assert none == NO_SLOT
    assert pool.table.usage().held_bytes == 5000


def test_what_is_there_or_on_its_way_is_not_reserved_again(pool: Pool) -> None:
    pool.store("a")
    pool.reserve("b")
    outcomes = [one.outcome for one in pool.table.reserve(READER, [want("a"), want("b"), want("c")], 5)]
    assert outcomes == [ReserveOutcome.PRESENT, ReserveOutcome.BUSY, ReserveOutcome.RESERVED]


def test_full_and_too_large(pool: Pool) -> None:
    wants = [want(name) for name in "abcde"] + [want("f", (UNITS + 1) * UNIT)]
    outcomes = [one.outcome for one in pool.table.reserve(WRITER, wants, 5)]
    assert outcomes == [ReserveOutcome.RESERVED] * 4 + [ReserveOutcome.FULL, ReserveOutcome.TOO_LARGE]
    assert pool.table.counters.full == 2


def test_removing_makes_room(pool: Pool) -> None:
    for name in "abcd":
        pool.store(name)
    assert pool.reserve("e") == NO_SLOT
    assert pool.table.remove(keys("bx")) == [RemoveOutcome.FREED, RemoveOutcome.MISSING]
    assert pool.reserve("e").generation


def test_a_leased_block_that_is_removed_stays_for_its_readers_only(pool: Pool) -> None:
    slot = pool.store("a")
    first, _ = pool.table.pin(READER, keys("a"), 5)
    second, _ = pool.table.pin(READER, keys("a"), 5)
    assert pool.table.remove(keys("a")) == [RemoveOutcome.LATER]
    assert pool.table.holds(keys("a")) == [False]
    assert pool.word(slot) == slot.generation
    assert pool.table.release(first) is LeaseAnswer.VALID
    assert pool.table.usage().used_bytes == UNIT
    assert pool.table.release(second) is LeaseAnswer.VALID
    assert pool.table.usage().used_bytes == 0
    assert pool.word(slot) == 0


def test_a_removed_block_may_be_written_anew_beside_its_old_readers(pool: Pool) -> None:
    old = pool.store("a")
    lease, _ = pool.table.pin(READER, keys("a"), 5)
    pool.table.remove(keys("a"))
    new = pool.store("a")
    assert new.offset != old.offset
    assert pool.table.release(lease) is LeaseAnswer.VALID
    assert pool.table.holds(keys("a")) == [True]


def test_leases_are_renewed_end_and_are_remembered(pool: Pool) -> None:
    pool.store("a")
    lease, _ = pool.table.pin(READER, keys("a"), 5)
    pool.clock.advance(4)
    assert pool.table.renew(lease, 5) is LeaseAnswer.VALID
    pool.clock.advance(4)
    assert pool.table.usage().leased_blocks == 1
    pool.clock.advance(1)
    assert pool.table.usage().leased_blocks == 0
    assert pool.table.renew(lease, 5) is LeaseAnswer.ENDED
    assert pool.table.release(lease) is LeaseAnswer.ENDED
    assert pool.table.release(LeaseId("pin-77")) is LeaseAnswer.UNKNOWN
    assert pool.table.counters.leases_expired == 1


def test_a_reader_that_was_too_slow_sees_another_generation(pool: Pool) -> None:
    slot = pool.store("a")
    pool.table.pin(READER, keys("a"), 5)
    pool.clock.advance(5)
    assert pool.word(slot) == slot.generation, "nothing has happened to the block"
    pool.table.remove(keys("a"))
    assert pool.word(slot) == 0
    again = pool.reserve("b")
    assert again.offset == slot.offset
    assert pool.word(slot) == again.generation != slot.generation


def test_an_abandoned_reservation_is_an_orphan_until_its_quarantine_is_over(pool: Pool) -> None:
    slot = pool.reserve("a", seconds=10)
    pool.clock.advance(10)
    usage = pool.table.usage()
    assert (usage.orphan_blocks, usage.filling_blocks, usage.used_bytes) == (1, 0, UNIT)
    assert pool.word(slot) == 0, "its writer stops when it looks"
    assert pool.reserve("a").offset != slot.offset, "another may write the block, elsewhere"
    assert pool.table.next_expiry() == 20
    pool.clock.advance(60)
    pool.table.settle()
    assert pool.table.counters.written_off == 1
    pool.clock.advance(60)
    usage = pool.table.usage()
    assert (usage.orphan_blocks, usage.used_bytes) == (0, 0)


@pytest.mark.parametrize("ends_it", ["commit", "abort", "forget"])
def test_an_orphan_comes_back_when_its_writer_has_stopped(pool: Pool, ends_it: str) -> None:
    slot = pool.reserve("a", seconds=1)
    pool.clock.advance(1)
    if ends_it == "commit":
        assert pool.table.commit([fill("a", slot)]) == [CommitOutcome.LATE]
    elif ends_it == "abort":
        pool.table.abort([fill("a", slot)])
    else:
        pool.table.forget(WRITER)
    usage = pool.table.usage()
    assert (usage.orphan_blocks, usage.used_bytes, usage.stored_blocks) == (0, 0, 0)
    assert pool.table.commit([fill("a", slot)]) == [CommitOutcome.LATE]


def test_a_user_that_is_gone_leaves_nothing_but_its_blocks(pool: Pool) -> None:
    pool.store("a")
    pool.reserve("b")
    pool.table.pin(WRITER, keys("a"), 100)
    pool.table.pin(READER, keys("a"), 100)
    pool.table.forget(WRITER)
    usage = pool.table.usage()
    assert (usage.stored_blocks, usage.filling_blocks, usage.open_leases) == (1, 0, 1)


def test_a_commit_or_abort_of_anothers_slot_changes_nothing(pool: Pool) -> None:
    slot = pool.reserve("a")
    assert pool.table.commit([fill("b", slot), Fill(keys("a")[0], 12345)]) == [CommitOutcome.LATE] * 2
    pool.table.abort([fill("b", slot)])
    assert pool.table.commit([fill("a", slot)]) == [CommitOutcome.STORED]
    pool.table.abort([fill("a", slot)])
    assert pool.table.holds(keys("a")) == [True]
    assert pool.table.commit([fill("a", slot)]) == [CommitOutcome.LATE]


def test_a_corrupt_block_is_forgotten_but_not_one_written_since(pool: Pool) -> None:
    slot = pool.store("a")
    pool.table.remove_corrupt([fill("a", slot)])
    assert pool.table.holds(keys("a")) == [False]
    pool.store("a")
    pool.table.remove_corrupt([fill("a", slot)])
    assert pool.table.holds(keys("a")) == [True]
    assert pool.table.counters.corrupt == 1


def test_the_next_time_is_the_earliest_of_all(pool: Pool) -> None:
    assert pool.table.next_expiry() is None
    pool.store("a")
    assert pool.table.next_expiry() is None
    pool.reserve("b", seconds=10)
    lease, _ = pool.table.pin(READER, keys("a"), 5)
    assert pool.table.next_expiry() == 5
    pool.table.release(lease)
    assert pool.table.next_expiry() == 10
