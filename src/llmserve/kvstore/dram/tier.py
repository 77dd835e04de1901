"""The pool with its book: which blocks are in DRAM, which are being written, and whose room is taken.

The pool (`pool.table`) knows slots, the index (`eviction.tier_index`) knows blocks and who goes next. Here
the two are kept in step: a block is charged from its reservation on, and pinned in the index while it is
written or leased; when its reservation or lease ends, by a message or by time, both let go of it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from llmserve.core.clock import Clock
from llmserve.core.deadlines import Deadlines
from llmserve.core.ids import BlockHash, LeaseId, TenantId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.stats import TierTotals
from llmserve.kvstore.blocks import (
    CommitOutcome,
    Fill,
    HeldChanged,
    PartFill,
    PoolUser,
    Reserved,
    ReserveOutcome,
    Slot,
    StoredBlock,
    Want,
    nobody_asks,
    part_key,
)
from llmserve.kvstore.dram.table import PoolTable
from llmserve.kvstore.eviction import Added, TierIndex, Victim
from llmserve.kvstore.tiers.base import BlobKey


@dataclass(slots=True)
class _Filling:
    user: PoolUser
    block: StoredBlock
    slots: tuple[Slot, ...]
    checksums: dict[int, int] = field(default_factory=dict)  # of the parts that are committed


@dataclass(slots=True)
class _Lease:
    user: PoolUser
    keys: list[BlockHash]


class DramTier:
    """Pure but for the pool's one array; not thread-safe. Overdue things are settled before each answer."""

    def __init__(
        self,
        table: PoolTable,
        book: TierIndex,
        clock: Clock,
        noted: Callable[[Slot], int] = lambda _: 0,
        name: str = "dram",
        wipe: Callable[[Slot], None] = lambda _: None,
    ) -> None:
        """noted: the checksum that a writer has left beside its slot, or 0. wipe: takes away what
        stands there of an earlier use."""
        self.table, self.book, self.name = table, book, name
        self.totals = TierTotals()
        self.held_changed: HeldChanged = nobody_asks
        self._clock, self._noted, self._wipe = clock, noted, wipe
        self._filling: dict[BlockHash, _Filling] = {}
        self._leases: dict[LeaseId, _Lease] = {}
        self._filling_ends: Deadlines[BlockHash] = Deadlines()
        self._lease_ends: Deadlines[LeaseId] = Deadlines()
        self._blocks: dict[BlockHash, StoredBlock] = {}

    # -- what is there

    def holds(self, key: BlockHash) -> bool:
        """All parts of it."""
        return key in self._blocks and all(self.table.holds(self._names(key)))

    def block(self, key: BlockHash) -> StoredBlock:
        """Of a block that is stored, or was and is not evicted yet."""
        return self._blocks[key]

    def is_filling(self, key: BlockHash) -> bool:
        return key in self._filling

    @property
    def open_leases(self) -> int:
        return len(self._leases)

    @property
    def reserved_blocks(self) -> int:
        return len(self._filling)

    def is_used_by(self, users: Collection[PoolUser]) -> bool:
        """Whether one of them has a lease or a reservation."""
        writers = (filling.user for filling in self._filling.values())
        readers = (lease.user for lease in self._leases.values())
        return bool(users) and any(user in users for user in (*writers, *readers))

    def leading(self, keys: Sequence[BlockHash]) -> int:
        return next((at for at, key in enumerate(keys) if not self.holds(key)), len(keys))

    # -- readers

    def lease(
        self, user: PoolUser, keys: Sequence[BlockHash], parts: int, seconds: float
    ) -> tuple[LeaseId, list[tuple[Slot, ...]]]:
        """On held blocks; the slots of each."""
        names = [part_key(key, part) for key in keys for part in range(parts)]
        lease_id, slots = self.table.pin(user, names, seconds)
        self._leases[lease_id] = _Lease(user, self.book.pin(keys))
        self._lease_ends.put(lease_id, self._clock.now() + seconds)
        return lease_id, [tuple(slots[at : at + parts]) for at in range(0, len(slots), parts)]

    def renew(self, lease_id: LeaseId, seconds: float) -> LeaseAnswer:
        self.settle()
        answer = self.table.renew(lease_id, seconds)
        if answer is LeaseAnswer.VALID:
            self._lease_ends.put(lease_id, self._clock.now() + seconds)
        return answer

    def release(self, lease_id: LeaseId) -> LeaseAnswer:
        self.settle()
        if lease_id in self._leases:
            self._unpin(lease_id)
        return self.table.release(lease_id)

    # -- writers

    def make_room(self, size_bytes: int, tenant: TenantId) -> list[Victim]:
        """What the book gives up; the caller sees to its bytes and then calls `evict`."""
        self.settle()
        return self.book.make_room(size_bytes, tenant)

    def evict(self, key: BlockHash) -> None:
        """Of a victim: its slots come back, when nobody reads them any more."""
        self.table.remove(self._names(key))
        if self._blocks.pop(key, None):
            self.held_changed((key,), False)

    def reserve(
        self, user: PoolUser, block: StoredBlock, seconds: float
    ) -> tuple[ReserveOutcome, tuple[Slot, ...]]:
        """Room for all parts of a block, or for none. Make room first."""
        self.settle()
        if block.key in self._filling:
            return ReserveOutcome.BUSY, ()
        if self.holds(block.key):
            return ReserveOutcome.PRESENT, ()
        self.drop(block.key)  # what is left of it, if a part was lost
        added = self.book.add(block.key, block.parent, self.charge(block.part_bytes), block.tenant)
        if added is Added.NO_ROOM:
            return ReserveOutcome.FULL, ()
        wants = [Want(part_key(block.key, part), size) for part, size in enumerate(block.part_bytes)]
        reserved = self.table.reserve(user, wants, seconds)
        refused = next((one.outcome for one in reserved if one.outcome is not ReserveOutcome.RESERVED), None)
        if refused is not None:
            self._undo(block.key, wants, reserved)
            return refused, ()
        self.book.pin([block.key])
        slots = tuple(one.slot for one in reserved)
        for slot in slots:  # or a writer that never began would vouch for the bytes of the block before
            self._wipe(slot)
        self._filling[block.key] = _Filling(user, block, slots)
        self._filling_ends.put(block.key, self._clock.now() + seconds)
        return ReserveOutcome.RESERVED, slots

    def commit(self, fill: PartFill) -> tuple[CommitOutcome, StoredBlock | None]:
        """The block, when this was its last part and it is stored. A fill without a checksum has the one
        beside its slot; when there is none either, the block was not written: it is given up."""
        self.settle()
        key, filling = part_key(fill.block, fill.part), self._filled(fill)
        checksum = fill.checksum or (self._noted(filling.slots[fill.part]) if filling else 0)
        if filling and not checksum:
            self.abort(fill.block)
            return CommitOutcome.LATE, None
        (outcome,) = self.table.commit([Fill(key, fill.generation, checksum)])
        if outcome is not CommitOutcome.STORED or filling is None:
            return outcome, None
        filling.checksums[fill.part] = checksum
        if len(filling.checksums) < len(filling.slots):
            return outcome, None
        del self._filling[fill.block]
        self._filling_ends.drop(fill.block)
        self._blocks[fill.block] = filling.block
        self.held_changed((fill.block,), True)
        self.book.unpin([fill.block])
        return outcome, filling.block

    def writer(self, key: BlockHash) -> PoolUser | None:
        """Who has a block reserved now."""
        filling = self._filling.get(key)
        return filling.user if filling else None

    def abort(self, key: BlockHash) -> None:
        """The writer of a reserved block gives up and has stopped writing."""
        if filling := self._filling.get(key):
            slots = enumerate(filling.slots)
            self.table.abort([Fill(part_key(key, part), slot.generation) for part, slot in slots])
            self._give_up(key)

    # -- both

    def drop(self, key: BlockHash) -> None:
        """It is worth nothing any more: lost in part, or corrupt."""
        if key in self.book and key not in self._filling:
            self.book.remove(key)
        self.evict(key)

    def forget(self, user: PoolUser) -> None:
        """This user is gone for sure."""
        self.table.forget(user)
        self.settle()
        for key in [key for key, filling in self._filling.items() if filling.user == user]:
            self._give_up(key)
        for lease_id in [name for name, lease in self._leases.items() if lease.user == user]:
            self._unpin(lease_id)

    def settle(self) -> None:
        """Ends what is over by now."""
        self.table.settle()
        now = self._clock.now()
        for key in self._filling_ends.take_due(now):
            self._give_up(key)
        for lease_id in self._lease_ends.take_due(now):
            self._unpin(lease_id)

    def charge(self, part_bytes: Sequence[int]) -> int:
        """What a block takes in the pool."""
        return sum(map(self.table.slabs.share_bytes, part_bytes))

    # -- parts

    def _filled(self, fill: PartFill) -> _Filling | None:
        """None: of this block there is no reservation, or another's by now."""
        filling = self._filling.get(fill.block)
        mine = filling and any(slot.generation == fill.generation for slot in filling.slots)
        return filling if mine else None

    def _names(self, key: BlockHash) -> list[BlobKey]:
        block = self._blocks.get(key)
        return [part_key(key, part) for part in range(len(block.part_bytes))] if block else []

    def _unpin(self, lease_id: LeaseId) -> None:
        self._lease_ends.drop(lease_id)
        self.book.unpin(self._leases.pop(lease_id).keys)

    def _undo(self, key: BlockHash, wants: Sequence[Want], reserved: Sequence[Reserved]) -> None:
        pairs = zip(wants, reserved, strict=True)
        self.table.abort(
            [Fill(w.key, r.slot.generation) for w, r in pairs if r.outcome is ReserveOutcome.RESERVED]
        )
        self.book.remove(key)

    def _give_up(self, key: BlockHash) -> None:
        filling = self._filling.pop(key)
        self._filling_ends.drop(key)
        self.table.remove([part_key(key, part) for part in filling.checksums])
        self.book.unpin([key])
        self.book.remove(key)
