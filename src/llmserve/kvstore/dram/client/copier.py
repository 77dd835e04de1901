"""The copies of a worker between the pool's slots and its own memory.

A store and a load are of several blocks: `slots` in order, and in `spans` the pieces of the first, then
those of the second, and so on, each as long together as its slot. Blocking; several threads may call.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import xxhash

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.dram.client.checks import Checks
from llmserve.kvstore.dram.client.pieces import LocalMemory, Rows
from llmserve.transfer.base import Region, Spans


class CopyOutcome(StrEnum):
    DONE = "done"
    MOVED = "moved"  # the reservation or the block ended meanwhile: what was copied is worth nothing
    CORRUPT = "corrupt"  # not what was written: tell the manager


@dataclass(frozen=True, slots=True)
class Copied:
    """checksum: to commit with, of a store; what was found, of a load that was checked."""

    outcome: CopyOutcome
    checksum: int = 0


# What is copied before it is digested, while it is in the second cache of a core: that costs a fifth of the
# copy, where another pass over memory would cost half.
_GROUP_BYTES = 512 << 10
_MOVED = Copied(CopyOutcome.MOVED)
_Copy = Callable[[Slot, list[Rows]], Copied]


class PoolCopier:
    """regions: the worker's memory, which outlives the copier. threads: those that copy, the caller's
    among them. Life: constructor -> close (idempotent), before the arena is closed."""

    def __init__(
        self, arena: AttachedArena, regions: Sequence[Region], checks: Checks | None = None, threads: int = 1
    ) -> None:
        self._arena, self._memory = arena, LocalMemory(regions)
        self._checks = checks or Checks()
        self._executor = ThreadPoolExecutor(threads, "kv-pool-copy") if threads > 1 else None

    def store(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """Fills reserved slots. Errors: TransferError, before anything is written."""
        return self._each(self._store, slots, spans)

    def load(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """Copies leased blocks out. Where the outcome is not DONE, the worker's memory holds garbage."""
        return self._each(self._load, slots, spans)

    def close(self) -> None:
        if self._executor:
            self._executor.shutdown()

    # -- inside

    def _each(self, copy: _Copy, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        if not self._arena.owner_lives():
            raise TransferError("kv pool: its owner has ended")
        jobs = self._memory.blocks(spans, [slot.length_bytes for slot in slots])
        each = self._executor.map if self._executor and len(jobs) > 1 else map
        return list(each(copy, slots, jobs))

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
        check, state, offset = self._checks.next(), xxhash.xxh3_64(), 0
        address, view = self._arena.place(slot)
        for group in _groups(block, _GROUP_BYTES if check else slot.length_bytes):
            self._memory.copy_out(group, address, view, offset)
            start, offset = offset, offset + sum(rows.total_bytes for rows in group)
            if check:
                state.update(view[start:offset])
        if not self._arena.is_current(slot):
            return _MOVED
        checksum = state.intdigest() if check else 0
        corrupt = check and checksum != slot.checksum
        return Copied(CopyOutcome.CORRUPT if corrupt else CopyOutcome.DONE, checksum)


def _groups(block: list[Rows], most_bytes: int) -> Iterator[list[Rows]]:
    """Of at most so many bytes each, or of one piece."""
    if len(block) == 1:
        yield from ([part] for part in block[0].cut(most_bytes))
        return
    each = max(1, most_bytes * len(block) // (sum(rows.total_bytes for rows in block) or 1))
    for first in range(0, len(block), each):
        yield block[first : first + each]
