"""The blocks that are being written: their slots, and what becomes of slots whose writer is late.

    add -> commit (each part) -> the block is whole
     |-> abort                   its writer has given up and has stopped
     `-> expired                 its writer may still write: the slots it has not committed are orphans

An orphan comes back when its writer says that it has stopped (a late commit), when the writer is known to be
gone (`forget`), or after quarantine_seconds. What a writer does after that, checksums must find.
"""

from collections.abc import Callable, Iterator, KeysView
from dataclasses import dataclass, field, replace

from llmserve.core.clock import Clock
from llmserve.core.ids import BlockHash
from llmserve.core.lease_table import LeaseTable
from llmserve.kvstore.blocks import CommitOutcome, PartFill, PoolUser, Slot, StoredBlock
from llmserve.kvstore.dram.slots import DramCounters, SlotPool


@dataclass(slots=True)
class SlotReservation:
    """committed: parts that are written."""

    user: PoolUser
    block: StoredBlock
    slots: list[Slot]
    committed: set[int] = field(default_factory=set)

    @property
    def open_slots(self) -> list[Slot]:
        """Slots whose writer may still write."""
        return [slot for part, slot in enumerate(self.slots) if part not in self.committed]


@dataclass(frozen=True, slots=True)
class _Orphan:
    user: PoolUser
    key: BlockHash
    slot: Slot


class SlotReservations:
    """on_given_up: is told the key of each block that is written no more, and is not whole."""

    def __init__(
        self,
        slots: SlotPool,
        clock: Clock,
        counters: DramCounters,
        quarantine_seconds: float,
        on_given_up: Callable[[BlockHash], None],
    ) -> None:
        self._slots, self._counters, self._on_given_up = slots, counters, on_given_up
        self._quarantine_seconds = quarantine_seconds
        self._open: LeaseTable[BlockHash, SlotReservation] = LeaseTable(clock, remembered_ends=0)
        self._orphans: LeaseTable[int, _Orphan] = LeaseTable(clock, remembered_ends=0)  # by generation

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: BlockHash) -> bool:
        return key in self._open

    def keys(self) -> KeysView[BlockHash]:
        return self._open.keys()

    @property
    def orphan_slots(self) -> int:
        return len(self._orphans)

    def writer(self, key: BlockHash) -> PoolUser | None:
        """The user that has reserved this block."""
        reservation = self._open.get(key)
        return reservation.user if reservation else None

    def writers(self) -> Iterator[PoolUser]:
        return (reservation.user for reservation in self._open.values())

    def add(self, user: PoolUser, block: StoredBlock, slots: tuple[Slot, ...], seconds: float) -> None:
        self._counters.reserved += len(slots)
        self._open.grant(block.key, SlotReservation(user, block, list(slots)), seconds)

    def commit(self, fill: PartFill) -> tuple[CommitOutcome, SlotReservation | None]:
        """Returns the reservation, if this was its last part; it has ended. A fill without a checksum has the
        one that its writer noted beside the slot; if there is none, the block was not written and is given
        up."""
        reservation = self._of_slot(fill)
        if reservation is None:
            self._free_orphan(fill)
            self._counters.late += 1
            return CommitOutcome.LATE, None
        slot = reservation.slots[fill.part]
        checksum = fill.checksum or self._slots.noted_checksum(slot)
        if not checksum:
            self.abort(fill.block)
            return CommitOutcome.LATE, None
        self._counters.stored += 1
        reservation.slots[fill.part] = replace(slot, checksum=checksum)
        reservation.committed.add(fill.part)
        if reservation.open_slots:
            return CommitOutcome.STORED, None
        return CommitOutcome.STORED, self._open.release(fill.block)

    def abort(self, key: BlockHash) -> None:
        """The writer of a reserved block gives up and has stopped writing. Other keys are ignored."""
        if key in self._open:
            reservation = self._open.release(key)
            self._counters.aborted += len(reservation.open_slots)
            self._slots.free(reservation.slots)
            self._on_given_up(key)

    def forget(self, user: PoolUser) -> None:
        """Ends all that this user has: its process has ended, and writes no more."""
        for generation in [name for name, orphan in self._orphans.items() if orphan.user == user]:
            self._slots.free([self._orphans.release(generation).slot])
        for key in [key for key, reservation in self._open.items() if reservation.user == user]:
            self._slots.free(self._open.release(key).slots)
            self._on_given_up(key)

    def settle(self) -> None:
        """Ends what is overdue."""
        for _, orphan in self._orphans.take_expired():
            self._counters.written_off += 1
            self._slots.free([orphan.slot])
        for key, reservation in self._open.take_expired():
            self._orphan(key, reservation)
            self._on_given_up(key)

    def check_integrity(self) -> tuple[list[Slot], list[Slot]]:
        """Returns the slots that are reserved, and the orphans. Errors: AssertionError."""
        self._open.check_integrity()
        self._orphans.check_integrity()
        assert all(reservation.open_slots for reservation in self._open.values())
        reserved = [slot for reservation in self._open.values() for slot in reservation.slots]
        return reserved, [orphan.slot for orphan in self._orphans.values()]

    def _of_slot(self, fill: PartFill) -> SlotReservation | None:
        """The open reservation of exactly this slot for this part."""
        reservation = self._open.get(fill.block)
        if reservation is None or fill.part >= len(reservation.slots) or fill.part in reservation.committed:
            return None
        return reservation if reservation.slots[fill.part].generation == fill.generation else None

    def _free_orphan(self, fill: PartFill) -> None:
        """Its writer has stopped."""
        orphan = self._orphans.get(fill.generation)
        if orphan is not None and orphan.key == fill.block:
            self._slots.free([self._orphans.release(fill.generation).slot])

    def _orphan(self, key: BlockHash, reservation: SlotReservation) -> None:
        """The writer may still write to the parts that it has not committed."""
        for part, slot in enumerate(reservation.slots):
            if part in reservation.committed:
                self._slots.free([slot])
            else:
                self._counters.expired += 1
                self._slots.fence(slot)
                orphan = _Orphan(reservation.user, key, slot)
                self._orphans.grant(slot.generation, orphan, self._quarantine_seconds)
