"""The slots of the arena: which bytes are in use, and by which use. Pure but for one array.

`generations` is that array: one word for each page of the arena, in memory that writers and readers see.
The word of a slot's first page holds the generation of its use, and 0 while it has none. It changes before
anyone learns of a new use. So whoever finds the same word after a copy has copied what it meant to.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llmserve.kvstore.blocks import ReserveOutcome, Slot
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.transfer.base import Int64Array


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


class SlotPool:
    """`take` -> `fence` (optional) -> `free`, for each slot."""

    def __init__(
        self,
        slabs: SlabMap,
        generations: Int64Array,
        noted_checksum: Callable[[Slot], int] = lambda _: 0,
        wipe_checksum: Callable[[Slot], None] = lambda _: None,
    ) -> None:
        """noted_checksum: what a writer has left beside its slot, or 0. wipe_checksum: removes what an
        earlier use left there."""
        self.slabs, self.noted_checksum = slabs, noted_checksum
        self._generations, self._wipe_checksum = generations, wipe_checksum
        self._next = itertools.count(1)

    def take(self, sizes: Sequence[int]) -> tuple[Slot, ...] | ReserveOutcome:
        """A slot for each size, or none at all and the reason (FULL or TOO_LARGE)."""
        offsets: list[int] = []
        for size in sizes:
            offset = self.slabs.take(size)
            if isinstance(offset, ReserveOutcome):
                for taken in offsets:
                    self.slabs.give(taken)
                return offset
            offsets.append(offset)
        return tuple(self._use(offset, size) for offset, size in zip(offsets, sizes, strict=True))

    def fence(self, slot: Slot) -> None:
        """Ends a use whose writer may still write: the writer stops when it looks at the word."""
        self._generations[slot.page] = 0

    def free(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            self.fence(slot)
            self.slabs.give(slot.offset)

    def share_bytes(self, sizes: Iterable[int]) -> int:
        """What slots of these sizes take of the arena."""
        return sum(map(self.slabs.share_bytes, sizes))

    def check_integrity(self, current: Iterable[Slot], fenced: Iterable[Slot]) -> None:
        """Raises AssertionError unless exactly these slots are in use."""
        words = {slot.page: slot.generation for slot in current}
        self.slabs.check_integrity({slot.offset for slot in (*current, *fenced)})
        assert {int(page): int(self._generations[page]) for page in self._generations.nonzero()[0]} == words

    def _use(self, offset: int, size: int) -> Slot:
        slot = Slot(offset, size, next(self._next))
        self._wipe_checksum(slot)  # else a writer that never began would vouch for the bytes of the last use
        self._generations[slot.page] = slot.generation
        return slot
