"""The DRAM tier: which blocks are stored, which are being written, who reads them, and whose room is taken.

A block has one part, and one slot, for each rank of its workers. A writer reserves the slots of a block and
commits its parts one by one; the block is stored with the last one. A reader holds a lease on stored blocks.
Reservations and leases end by a message or by time. The index (`eviction`) charges a block from its
reservation on; a block that is being written or is leased is pinned there.

A block that leaves the index is found no more, and its slots come back when its leases have ended. A
reservation that ends by time leaves slots that its writer may still be writing to: orphans. An orphan comes
back when its writer says that it has stopped (a late commit), when the writer is known to be gone (`forget`),
or after quarantine_seconds. What a writer does after that, checksums must find.

The tier is pure but for the array of `slots`, and not thread-safe.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from llmserve.core.clock import Clock
from llmserve.core.ids import BlockHash, LeaseId, TenantId
from llmserve.core.lease_table import LeaseAnswer, LeaseTable
from llmserve.core.stats import TierTotals
from llmserve.kvstore.blocks import (
    STORE_USER,
    CommitOutcome,
    HeldChanged,
    PartFill,
    PoolUser,
    ReserveOutcome,
    Slot,
    StoredBlock,
    nobody_asks,
)
from llmserve.kvstore.dram.slots import SlotPool
from llmserve.kvstore.eviction import Added, TierIndex, Victim

QUARANTINE_SECONDS = 60.0


@dataclass(slots=True)
class DramCounters:
    """Totals since the start. All but those of leases count slots."""

    reserved: int = 0
    full: int = 0  # blocks that were refused for want of slots
    stored: int = 0
    late: int = 0  # commits of a reservation that had ended
    aborted: int = 0
    expired: int = 0  # slots of reservations that ended by time
    written_off: int = 0  # orphans whose writer was never heard of again
    leases_granted: int = 0
    leases_released: int = 0
    leases_expired: int = 0


@dataclass(slots=True)
class _Reservation:
    user: PoolUser
    block: StoredBlock
    slots: list[Slot]
    committed: set[int] = field(default_factory=set)  # parts

    @property
    def open_slots(self) -> list[Slot]:
        """Slots whose writer may still write."""
        return [slot for part, slot in enumerate(self.slots) if part not in self.committed]


@dataclass(frozen=True, slots=True)
class _Orphan:
    user: PoolUser
    key: BlockHash
    slot: Slot


@dataclass(eq=False, slots=True)
class _Stored:
    block: StoredBlock
    slots: tuple[Slot, ...]
    leases: int = 0
    is_evicted: bool = False


@dataclass(frozen=True, slots=True)
class _ReadLease:
    user: PoolUser
    blocks: tuple[_Stored, ...]
    pinned: Sequence[BlockHash]  # in the index


class DramTier:
    """Every call ends what is overdue before it answers; `settle` does so between calls."""

    def __init__(
        self,
        slots: SlotPool,
        index: TierIndex,
        clock: Clock,
        name: str = "dram",
        quarantine_seconds: float = QUARANTINE_SECONDS,
    ) -> None:
        self.slots, self.index, self.name = slots, index, name
        self.totals, self.counters = TierTotals(), DramCounters()
        self.held_changed: HeldChanged = nobody_asks
        self._quarantine_seconds = quarantine_seconds
        self._stored: dict[BlockHash, _Stored] = {}
        self._filling: LeaseTable[BlockHash, _Reservation] = LeaseTable(clock, remembered_ends=0)
        self._orphans: LeaseTable[int, _Orphan] = LeaseTable(clock, remembered_ends=0)  # by generation
        self._leases: LeaseTable[LeaseId, _ReadLease] = LeaseTable(clock)

    # -- what is there

    def holds(self, key: BlockHash) -> bool:
        return key in self._stored

    def leading(self, keys: Sequence[BlockHash]) -> int:
        """Number of the first keys that are stored without a gap."""
        return next((at for at, key in enumerate(keys) if key not in self._stored), len(keys))

    def block(self, key: BlockHash) -> StoredBlock:
        """The stored block of this key."""
        return self._stored[key].block

    def writer(self, key: BlockHash) -> PoolUser | None:
        """The user that has reserved this block."""
        reservation = self._filling.get(key)
        return reservation.user if reservation else None

    @property
    def open_leases(self) -> int:
        """Leases of readers; the store's own do not count."""
        return sum(lease.user != STORE_USER for lease in self._leases.values())

    @property
    def reserved_blocks(self) -> int:
        return len(self._filling)

    @property
    def orphan_slots(self) -> int:
        return len(self._orphans)

    def is_used_by(self, users: Collection[PoolUser]) -> bool:
        """Whether one of the users has a lease or a reservation."""
        writers = (reservation.user for reservation in self._filling.values())
        readers = (lease.user for lease in self._leases.values())
        return bool(users) and any(user in users for user in (*writers, *readers))

    # -- readers

    def lease(
        self, user: PoolUser, keys: Sequence[BlockHash], seconds: float, *, pins: bool = True
    ) -> tuple[LeaseId, list[tuple[Slot, ...]]]:
        """One lease on stored blocks, and the slots of each. pins: the blocks also stay in the index."""
        self.settle()
        blocks = tuple(self._stored[key] for key in keys)
        for one in blocks:
            one.leases += 1
        self.counters.leases_granted += 1
        lease_id = LeaseId(f"pin-{self.counters.leases_granted:x}")
        pinned = self.index.pin(keys) if pins else ()
        self._leases.grant(lease_id, _ReadLease(user, blocks, pinned), seconds)
        return lease_id, [one.slots for one in blocks]

    def renew(self, lease_id: LeaseId, seconds: float) -> LeaseAnswer:
        self.settle()
        return self._leases.renew(lease_id, seconds)

    def release(self, lease_id: LeaseId) -> LeaseAnswer:
        """VALID: the blocks stayed where they were until now."""
        self.settle()
        answer = self._leases.check(lease_id)
        if answer is LeaseAnswer.VALID:
            self.counters.leases_released += 1
            self._end_lease(self._leases.release(lease_id))
        return answer

    # -- writers

    def reserve(
        self, user: PoolUser, block: StoredBlock, seconds: float
    ) -> tuple[ReserveOutcome, tuple[Slot, ...]]:
        """Slots for all parts of a block, or for none. The caller makes room first."""
        self.settle()
        if block.key in self._filling:
            return ReserveOutcome.BUSY, ()
        if block.key in self._stored:
            return ReserveOutcome.PRESENT, ()
        added = self.index.add(block.key, block.parent, self.charge(block.part_bytes), block.tenant)
        if added is Added.NO_ROOM:
            return ReserveOutcome.FULL, ()
        slots = self.slots.take(block.part_bytes)
        if isinstance(slots, ReserveOutcome):
            self.counters.full += 1
            self.index.remove(block.key)
            return slots, ()
        self.counters.reserved += len(slots)
        self.index.pin([block.key])
        self._filling.grant(block.key, _Reservation(user, block, list(slots)), seconds)
        return ReserveOutcome.RESERVED, slots

    def commit(self, fill: PartFill) -> tuple[CommitOutcome, StoredBlock | None]:
        """The block, if this was its last part and it is stored. A fill without a checksum has the one that
        its writer noted beside the slot; if there is none, the block was not written and is aborted."""
        self.settle()
        reservation = self._reservation(fill)
        if reservation is None:
            self._free_orphan(fill)
            self.counters.late += 1
            return CommitOutcome.LATE, None
        slot = reservation.slots[fill.part]
        checksum = fill.checksum or self.slots.noted_checksum(slot)
        if not checksum:
            self.abort(fill.block)
            return CommitOutcome.LATE, None
        self.counters.stored += 1
        reservation.slots[fill.part] = replace(slot, checksum=checksum)
        reservation.committed.add(fill.part)
        if reservation.open_slots:
            return CommitOutcome.STORED, None
        self._filling.release(fill.block)
        self._stored[fill.block] = _Stored(reservation.block, tuple(reservation.slots))
        self.held_changed((fill.block,), True)
        self.index.unpin([fill.block])
        return CommitOutcome.STORED, reservation.block

    def abort(self, key: BlockHash) -> None:
        """The writer of a reserved block gives up and has stopped writing. Other keys are ignored."""
        if key in self._filling:
            reservation = self._filling.release(key)
            self.counters.aborted += len(reservation.open_slots)
            self.slots.free(reservation.slots)
            self._leave_index(key)

    # -- room

    def make_room(self, size_bytes: int, tenant: TenantId) -> list[Victim]:
        """Blocks that the index gives up; the caller saves their bytes if it wants to, and calls `evict`."""
        self.settle()
        return self.index.make_room(size_bytes, tenant)

    def evict(self, key: BlockHash) -> None:
        """Ends a block that has left the index: its slots come back when nobody reads them any more."""
        self.settle()
        if stored := self._stored.pop(key, None):
            stored.is_evicted = True
            self._free_unread(stored)
            self.held_changed((key,), False)

    def drop(self, key: BlockHash) -> None:
        """Removes a stored block that is worth nothing any more. Other keys are ignored."""
        if key in self._stored:
            self.index.remove(key)
            self.evict(key)

    def charge(self, part_bytes: Sequence[int]) -> int:
        """What a block takes of the arena."""
        return self.slots.share_bytes(part_bytes)

    # -- ends

    def forget(self, user: PoolUser) -> None:
        """Ends all that this user has: its process has ended, and nothing is under way in its name."""
        self.settle()
        for generation in [name for name, orphan in self._orphans.items() if orphan.user == user]:
            self.slots.free([self._orphans.release(generation).slot])
        for key in [key for key, reservation in self._filling.items() if reservation.user == user]:
            self.slots.free(self._filling.release(key).slots)
            self._leave_index(key)
        for lease_id in [name for name, lease in self._leases.items() if lease.user == user]:
            self.counters.leases_expired += 1
            self._end_lease(self._leases.release(lease_id))

    def settle(self) -> None:
        """Ends what is overdue."""
        for _, lease in self._leases.take_expired():
            self.counters.leases_expired += 1
            self._end_lease(lease)
        for _, orphan in self._orphans.take_expired():
            self.counters.written_off += 1
            self.slots.free([orphan.slot])
        for key, reservation in self._filling.take_expired():
            self._orphan(key, reservation)

    def check_integrity(self) -> None:
        """Raises AssertionError if the tier contradicts itself. For tests and debugging."""
        for table in (self._filling, self._orphans, self._leases):
            table.check_integrity()
        leased = [block for lease in self._leases.values() for block in lease.blocks]
        blocks = {*self._stored.values(), *leased}
        filling = [slot for reservation in self._filling.values() for slot in reservation.slots]
        current = [*filling, *(slot for block in blocks for slot in block.slots)]
        self.slots.check_integrity(current, [orphan.slot for orphan in self._orphans.values()])
        assert all(block.leases == leased.count(block) for block in blocks)
        assert all(one.is_evicted == (self._stored.get(one.block.key) is not one) for one in blocks)
        assert {node.key for node in self.index.held()} == self._stored.keys() | self._filling.keys()
        assert all(reservation.open_slots for reservation in self._filling.values())

    # -- inside

    def _reservation(self, fill: PartFill) -> _Reservation | None:
        """The open reservation of exactly this slot for this part."""
        reservation = self._filling.get(fill.block)
        if reservation is None or fill.part >= len(reservation.slots) or fill.part in reservation.committed:
            return None
        return reservation if reservation.slots[fill.part].generation == fill.generation else None

    def _free_orphan(self, fill: PartFill) -> None:
        """Its writer has stopped."""
        orphan = self._orphans.get(fill.generation)
        if orphan is not None and orphan.key == fill.block:
            self.slots.free([self._orphans.release(fill.generation).slot])

    def _orphan(self, key: BlockHash, reservation: _Reservation) -> None:
        """A reservation has expired: its writer may still write to the parts that it has not committed."""
        for part, slot in enumerate(reservation.slots):
            if part in reservation.committed:
                self.slots.free([slot])
            else:
                self.counters.expired += 1
                self.slots.fence(slot)
                orphan = _Orphan(reservation.user, key, slot)
                self._orphans.grant(slot.generation, orphan, self._quarantine_seconds)
        self._leave_index(key)

    def _leave_index(self, key: BlockHash) -> None:
        self.index.unpin([key])
        self.index.remove(key)

    def _end_lease(self, lease: _ReadLease) -> None:
        for stored in lease.blocks:
            stored.leases -= 1
            self._free_unread(stored)
        self.index.unpin(lease.pinned)

    def _free_unread(self, stored: _Stored) -> None:
        if stored.is_evicted and not stored.leases:
            self.slots.free(stored.slots)
