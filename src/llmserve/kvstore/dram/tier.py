"""The DRAM tier: which blocks are stored, which are being written, who reads them, and whose room is taken.

A block has one part, and one slot, for each rank of its workers. A writer reserves the slots of a block and
commits its parts one by one; the block is stored with the last one. A reader holds a lease on stored blocks.
Reservations and leases end by a message or by time. The index (`eviction`) charges a block from its
reservation on; a block that is being written or is leased is pinned there.

A block that leaves the index is found no more, and its slots come back when its leases have ended. What is
being written is in `reservations`.

The tier is pure but for the array of `slots`, and not thread-safe.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

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
from llmserve.kvstore.dram.reservations import SlotReservations
from llmserve.kvstore.dram.slots import DramCounters, SlotPool
from llmserve.kvstore.eviction import Added, TierIndex, Victim

QUARANTINE_SECONDS = 60.0


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
        self._stored: dict[BlockHash, _Stored] = {}
        self._writes = SlotReservations(slots, clock, self.counters, quarantine_seconds, self._leave_index)
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
        return self._writes.writer(key)

    @property
    def open_leases(self) -> int:
        """Leases of readers; the store's own do not count."""
        return sum(lease.user != STORE_USER for lease in self._leases.values())

    @property
    def reserved_blocks(self) -> int:
        return len(self._writes)

    @property
    def orphan_slots(self) -> int:
        return self._writes.orphan_slots

    def is_used_by(self, users: Collection[PoolUser]) -> bool:
        """Whether one of the users has a lease or a reservation."""
        readers = (lease.user for lease in self._leases.values())
        return bool(users) and any(user in users for user in (*self._writes.writers(), *readers))

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
        if block.key in self._writes:
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
        self.index.pin([block.key])
        self._writes.add(user, block, slots, seconds)
        return ReserveOutcome.RESERVED, slots

    def commit(self, fill: PartFill) -> tuple[CommitOutcome, StoredBlock | None]:
        """The block, if this was its last part and it is stored."""
        self.settle()
        outcome, whole = self._writes.commit(fill)
        if whole is None:
            return outcome, None
        self._stored[fill.block] = _Stored(whole.block, tuple(whole.slots))
        self.held_changed((fill.block,), True)
        self.index.unpin([fill.block])
        return outcome, whole.block

    def abort(self, key: BlockHash) -> None:
        """The writer of a reserved block gives up and has stopped writing. Other keys are ignored."""
        self._writes.abort(key)

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
        self._writes.forget(user)
        for lease_id in [name for name, lease in self._leases.items() if lease.user == user]:
            self.counters.leases_expired += 1
            self._end_lease(self._leases.release(lease_id))

    def settle(self) -> None:
        """Ends what is overdue."""
        for _, lease in self._leases.take_expired():
            self.counters.leases_expired += 1
            self._end_lease(lease)
        self._writes.settle()

    def check_integrity(self) -> None:
        """Raises AssertionError if the tier contradicts itself. For tests and debugging."""
        self._leases.check_integrity()
        reserved, orphans = self._writes.check_integrity()
        leased = [block for lease in self._leases.values() for block in lease.blocks]
        blocks = {*self._stored.values(), *leased}
        self.slots.check_integrity([*reserved, *(slot for block in blocks for slot in block.slots)], orphans)
        assert all(block.leases == leased.count(block) for block in blocks)
        assert all(one.is_evicted == (self._stored.get(one.block.key) is not one) for one in blocks)
        assert {node.key for node in self.index.held()} == self._stored.keys() | self._writes.keys()

    # -- inside

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
