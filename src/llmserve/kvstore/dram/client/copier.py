"""The copies of a worker between the pool's slots and its own memory.

A store and a load are of several blocks: `slots` in order, and in `spans` the pieces of the first, then
those of the second, and so on, each as long together as its slot. Blocking; several threads may call.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import xxhash

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.dram.client.pieces import LocalMemory, Rows
from llmserve.transfer.base import Region, Spans


class CopyOutcome(StrEnum):
    DONE = "done"
    MOVED = "moved"  # the reservation or the block ended meanwhile: what was copied is worth nothing
    CORRUPT = "corrupt"  # other bytes than were written: the manager must know


@dataclass(frozen=True, slots=True)
class Copied:
    """checksum: xxh3 of what was stored, or of what was found by a load."""

    outcome: CopyOutcome
    checksum: int = 0


# What is copied before it is digested, while it is in the second cache of a core: that costs a fifth of the
# copy, where another pass over memory would cost half.
_GROUP_BYTES = 512 << 10
_MOVED = Copied(CopyOutcome.MOVED)
_Copy = Callable[[Slot, list[Rows]], Copied]


class PoolCopier:
    """Several threads may copy at once. The arena is closed after the last copy."""

    def __init__(self, arena: AttachedArena, regions: Sequence[Region]) -> None:
        """regions: the worker's memory, which outlives the copier."""
        self._arena, self._memory = arena, LocalMemory(regions)

    def store(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """Fills reserved slots. Errors: TransferError, before anything is written."""
        return self._each(self._store, slots, spans)

    def load(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """Copies leased blocks out. Where the outcome is not DONE, the worker's memory holds garbage."""
        return self._each(self._load, slots, spans)

    # -- inside

    def _each(self, copy: _Copy, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        if not self._arena.owner_lives():
            raise TransferError("kv pool: its owner has ended")
        return list(map(copy, slots, self._memory.blocks(spans, [slot.length_bytes for slot in slots])))

    def _store(self, slot: Slot, block: list[Rows]) -> Copied:
        """Digests what it reads, not what it wrote: a foreign write to the slot must not be vouched for.
        The generation is looked at between groups: a writer that was paused for too long stops soon."""
        state, offset = xxhash.xxh3_64(), 0
        address, view = self._arena.place(slot)
        for group in _groups(block, _GROUP_BYTES):
            if not self._arena.is_current(slot):
                return _MOVED
            self._memory.copy_in(group, address, view, offset)
            self._memory.digest(group, state)
            offset += sum(rows.total_bytes for rows in group)
        return Copied(CopyOutcome.DONE, state.intdigest()) if self._arena.is_current(slot) else _MOVED

    def _load(self, slot: Slot, block: list[Rows]) -> Copied:
        """Digests the slot, after the copy: what a foreign write had spoiled by then is still spoiled."""
        state, offset = xxhash.xxh3_64(), 0
        address, view = self._arena.place(slot)
        for group in _groups(block, _GROUP_BYTES):
            self._memory.copy_out(group, address, view, offset)
            start, offset = offset, offset + sum(rows.total_bytes for rows in group)
            state.update(view[start:offset])
        if not self._arena.is_current(slot):
            return _MOVED
        checksum = state.intdigest()
        return Copied(CopyOutcome.DONE if checksum == slot.checksum else CopyOutcome.CORRUPT, checksum)


def _groups(block: list[Rows], most_bytes: int) -> Iterator[list[Rows]]:
    """Groups of at most so many bytes, or of one piece."""
    if len(block) == 1:
        yield from ([part] for part in block[0].cut(most_bytes))
        return
    each = max(1, most_bytes * len(block) // (sum(rows.total_bytes for rows in block) or 1))
    for first in range(0, len(block), each):
        yield block[first : first + each]
