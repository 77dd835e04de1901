"""Who uses which slot: reservations of writers, blocks, leases of readers. Pure but for one array.

`generations` is that array: one word for each page of the arena, in memory that writers and readers see.
The word of a slot's first page holds the generation of its use, and 0 while it has none. It changes before
anyone is told of a new use. So whoever finds the same word after a copy has copied what it meant to.

A reservation that ends without a commit leaves a slot that its writer may still be writing to: an orphan.
The slot waits until the writer says that it has stopped (a late commit, an abort), is known to be gone
(`forget`), or quarantine_seconds are over. What a writer does after that, checksums must find.

Not thread-safe. Time is settled in every call that could see it; a timer at `next_expiry` is enough else.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from llmserve.core.clock import Clock
from llmserve.core.deadlines import Deadlines
from llmserve.core.ids import LeaseId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.kvstore.blocks import (
    NO_SLOT,
    SLOT_ALIGNMENT_BYTES,
    CommitOutcome,
    Fill,
    PoolUsage,
    PoolUser,
    RemoveOutcome,
    Reserved,
    ReserveOutcome,
    Slot,
    Want,
)
from llmserve.kvstore.dram.pins import PinBook, PinLease
from llmserve.kvstore.dram.slabs import NoSlot, SlabMap
from llmserve.kvstore.tiers.base import BlobKey
from llmserve.transfer.base import Int64Array

_NO_ROOM = {NoSlot.FULL: ReserveOutcome.FULL, NoSlot.TOO_LARGE: ReserveOutcome.TOO_LARGE}


class _State(Enum):
    FILLING = "filling"
    STORED = "stored"
    REMOVED = "removed"  # pinned still
    ORPHAN = "orphan"


@dataclass(slots=True)
class PoolCounters:
    """Totals since the start."""

    reserved: int = 0
    full: int = 0  # wishes refused for want of room
    stored: int = 0
    late: int = 0  # commits of a reservation that had ended
    aborted: int = 0
    expired: int = 0  # reservations that ended by time
    written_off: int = 0  # orphans whose writer was never heard of again
    removed: int = 0
    corrupt: int = 0  # removed because a reader found other bytes than were written
    leases_granted: int = 0
    leases_released: int = 0
    leases_expired: int = 0


@dataclass(eq=False, slots=True)
class _Use:
    key: BlobKey
    slot: Slot
    user: PoolUser
    state: _State = _State.FILLING
    pins: int = 0


@dataclass(slots=True)
class PoolTable:
    slabs: SlabMap
    generations: Int64Array
    clock: Clock
    quarantine_seconds: float = 60.0
    counters: PoolCounters = field(default_factory=PoolCounters)
    _uses: dict[int, _Use] = field(default_factory=dict)  # all slots in use, by generation
    _found: dict[BlobKey, _Use] = field(default_factory=dict)  # those that are filling or stored
    _unsettled: dict[int, _Use] = field(default_factory=dict)  # filling, or orphans
    _deadlines: Deadlines[int] = field(default_factory=Deadlines)
    _next: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _held_bytes: int = 0
    _pins: PinBook = field(init=False)

    def __post_init__(self) -> None:
        self._pins = PinBook(self.clock)

    # -- writers

    def reserve(self, user: PoolUser, wants: Sequence[Want], seconds: float) -> list[Reserved]:
        """A slot for each block that is not there, to be committed within `seconds`."""
        self.settle()
        return [self._reserve(user, want, seconds) for want in wants]

    def commit(self, fills: Sequence[Fill]) -> list[CommitOutcome]:
        """The bytes are written: the block is there from now on."""
        self.settle()
        return [self._commit(fill) for fill in fills]

    def abort(self, fills: Sequence[Fill]) -> None:
        """The writer gives up and has stopped writing. Other fills than reserved ones are ignored."""
        self.settle()
        for fill in fills:
            use = self._unsettled.get(fill.generation)
            if use is not None and use.key == fill.key:
                self.counters.aborted += 1
                self._free(use)

    # -- readers

    def pin(self, user: PoolUser, keys: Sequence[BlobKey], seconds: float) -> tuple[LeaseId, list[Slot]]:
        """One lease on all of the blocks that are there; NO_SLOT for the others."""
        self.settle()
        uses = [self._stored(key) for key in keys]
        there = [use for use in uses if use is not None]
        for use in there:
            use.pins += 1
        self.counters.leases_granted += 1
        lease_id = self._pins.grant(user, [use.slot.generation for use in there], seconds)
        return lease_id, [use.slot if use else NO_SLOT for use in uses]

    def renew(self, lease_id: LeaseId, seconds: float) -> LeaseAnswer:
        self.settle()
        return self._pins.renew(lease_id, seconds)

    def release(self, lease_id: LeaseId) -> LeaseAnswer:
        """VALID: its blocks stayed where they were until now."""
        self.settle()
        answer = self._pins.check(lease_id)
        if answer is LeaseAnswer.VALID:
            self.counters.leases_released += 1
            self._unpin(self._pins.end(lease_id))
        return answer

    # -- the owner

    def holds(self, keys: Sequence[BlobKey]) -> list[bool]:
        return [self._stored(key) is not None for key in keys]

    def remove(self, keys: Sequence[BlobKey]) -> list[RemoveOutcome]:
        """Evicts. What is being written is MISSING: it is not there yet."""
        self.settle()
        return [self._remove(self._stored(key)) for key in keys]

    def remove_corrupt(self, fills: Sequence[Fill]) -> None:
        """Blocks that a reader found to be other than what was written, unless they are gone already."""
        for fill in fills:
            use = self._stored(fill.key)
            if use is not None and use.slot.generation == fill.generation:
                self.counters.corrupt += 1
                self._remove(use)

    def forget(self, user: PoolUser) -> None:
        """This user is gone for sure: its process has ended, and nothing is under way in its name."""
        for use in [use for use in self._unsettled.values() if use.user == user]:
            self._free(use)
        for lease in self._pins.end_of(user):
            self.counters.leases_expired += 1
            self._unpin(lease)

    def settle(self) -> None:
        """Ends what is over by now."""
        for lease in self._pins.end_late():
            self.counters.leases_expired += 1
            self._unpin(lease)
        for generation in self._deadlines.take_due(self.clock.now()):
            self._end(self._uses[generation])

    def next_expiry(self) -> float | None:
        """When `settle` has something to do. None: never, as things are."""
        times = [self._deadlines.next(), self._pins.next_expiry()]
        return min((time for time in times if time is not None), default=None)

    def usage(self) -> PoolUsage:
        self.settle()
        filling = sum(use.state is _State.FILLING for use in self._unsettled.values())
        pinned = {generation for lease in self._pins.open_leases() for generation in lease.generations}
        return PoolUsage(
            stored_blocks=len(self._found) - filling,
            held_bytes=self._held_bytes,
            used_bytes=self.slabs.used_bytes,
            capacity_bytes=self.slabs.capacity_bytes,
            filling_blocks=filling,
            leased_blocks=len(pinned),
            open_leases=len(self._pins),
            orphan_blocks=len(self._unsettled) - filling,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when the table contradicts itself. For tests and debugging."""
        uses = self._uses.values()
        self.slabs.check_integrity({use.slot.offset for use in uses})
        assert {use.key: use for use in uses if use.state in (_State.FILLING, _State.STORED)} == self._found
        assert self._held_bytes == sum(use.slot.length_bytes for use in uses if use.state is _State.STORED)
        unsettled = {g: use for g, use in self._uses.items() if use.state in (_State.FILLING, _State.ORPHAN)}
        assert unsettled == self._unsettled
        assert len(self._deadlines) == len(unsettled), "whatever is unsettled ends some day"
        pins = [g for lease in self._pins.open_leases() for g in lease.generations]
        assert len(pins) == sum(use.pins for use in uses)
        assert all(use.pins for use in uses if use.state is _State.REMOVED)
        words = {use.slot.generation for use in uses if use.state is not _State.ORPHAN}
        assert set(self.generations[self.generations != 0].tolist()) == words

    # -- inside

    def _stored(self, key: BlobKey) -> _Use | None:
        use = self._found.get(key)
        return use if use is not None and use.state is _State.STORED else None

    def _reserve(self, user: PoolUser, want: Want, seconds: float) -> Reserved:
        if (use := self._found.get(want.key)) is not None:
            stored = use.state is _State.STORED
            return Reserved(ReserveOutcome.PRESENT if stored else ReserveOutcome.BUSY)
        offset = self.slabs.take(want.length_bytes)
        if isinstance(offset, NoSlot):
            self.counters.full += 1
            return Reserved(_NO_ROOM[offset])
        slot = Slot(offset, want.length_bytes, next(self._next))
        use = _Use(want.key, slot, user)
        self._uses[slot.generation] = self._found[want.key] = self._unsettled[slot.generation] = use
        self._deadlines.put(slot.generation, self.clock.now() + seconds)
        self._mark(slot, slot.generation)
        self.counters.reserved += 1
        return Reserved(ReserveOutcome.RESERVED, slot)

    def _commit(self, fill: Fill) -> CommitOutcome:
        use = self._unsettled.get(fill.generation)
        if use is None or use.key != fill.key:
            self.counters.late += 1
            return CommitOutcome.LATE
        if use.state is _State.ORPHAN:
            self.counters.late += 1
            self._free(use)
            return CommitOutcome.LATE
        self._settled(use)
        slot = use.slot
        use.slot = Slot(slot.offset, slot.length_bytes, slot.generation, fill.checksum)
        use.state = _State.STORED
        self._held_bytes += slot.length_bytes
        self.counters.stored += 1
        return CommitOutcome.STORED

    def _remove(self, use: _Use | None) -> RemoveOutcome:
        if use is None:
            return RemoveOutcome.MISSING
        self.counters.removed += 1
        self._held_bytes -= use.slot.length_bytes
        del self._found[use.key]
        use.state = _State.REMOVED
        if use.pins:
            return RemoveOutcome.LATER
        self._free(use)
        return RemoveOutcome.FREED

    def _unpin(self, lease: PinLease) -> None:
        for generation in lease.generations:
            use = self._uses[generation]
            use.pins -= 1
            if not use.pins and use.state is _State.REMOVED:
                self._free(use)

    def _end(self, use: _Use) -> None:
        """The time of a reservation, or of an orphan, is over."""
        if use.state is _State.ORPHAN:
            self.counters.written_off += 1
            self._free(use)
            return
        self.counters.expired += 1
        del self._found[use.key]
        use.state = _State.ORPHAN
        self._mark(use.slot, 0)
        self._deadlines.put(use.slot.generation, self.clock.now() + self.quarantine_seconds)

    def _free(self, use: _Use) -> None:
        if use.state is _State.FILLING:
            del self._found[use.key]
        self._settled(use)
        del self._uses[use.slot.generation]
        self._mark(use.slot, 0)
        self.slabs.give(use.slot.offset)

    def _settled(self, use: _Use) -> None:
        self._unsettled.pop(use.slot.generation, None)
        self._deadlines.drop(use.slot.generation)

    def _mark(self, slot: Slot, generation: int) -> None:
        self.generations[slot.offset // SLOT_ALIGNMENT_BYTES] = generation
