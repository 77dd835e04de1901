"""The copies of a worker between the pool's slots and its own memory, and digests of them.

A store and a load are of several blocks: `slots` in order, and in `spans` the pieces of the first, then
those of the second, and so on, each as long together as its slot. Blocking; several threads may call.

The pieces of a block mostly lie equally far apart (a layer after the other). Then they are the rows of one
strided array and numpy copies them in one call, at the speed of memcpy; otherwise each is a memcpy of its
own. Both let other threads run.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise, starmap
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.transfer.base import Int64Array, Region, Spans
from llmserve.transfer.spans import check_bounds

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcpy.restype = None


@dataclass(frozen=True, slots=True)
class Rows:
    """`count` pieces of `length` bytes, which begin `stride` bytes apart, from `address` on."""

    address: int
    length: int
    count: int = 1
    stride: int = 0

    @property
    def total_bytes(self) -> int:
        return self.length * self.count

    def cut(self, most_bytes: int) -> "Iterator[Rows]":
        """The same in parts of at most so many bytes, or one piece."""
        each = max(1, most_bytes // self.length)
        if each >= self.count:
            yield self
            return
        for first in range(0, self.count, each):
            address = self.address + first * self.stride
            yield Rows(address, self.length, min(each, self.count - first), self.stride)


class LocalMemory:
    """Registered memory of this process, which outlives this object."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._lengths = [region.length_bytes for region in regions]
        self._starts = np.array([region.address for region in regions], np.int64)
        # One window over all regions. What lies between them is not ours, and is never touched: every piece
        # has passed check_bounds.
        self._first = min((region.address for region in regions), default=0)
        end = max((region.address + region.length_bytes for region in regions), default=0)
        self._window = memoryview((ctypes.c_char * (end - self._first)).from_address(self._first)).cast("B")

    def blocks(self, spans: Spans, block_bytes: Sequence[int]) -> list[list[Rows]]:
        """The pieces of blocks that follow each other in `spans`. Errors: TransferError for pieces outside
        of registered memory, or which do not make up such blocks."""
        check_bounds(spans, self._lengths, "local")
        addresses = self._starts[spans.regions] + spans.offsets
        return _even(addresses, spans.lengths, block_bytes) or _uneven(addresses, spans.lengths, block_bytes)

    def copy_in(self, group: Sequence[Rows], slot_address: int, slot: memoryview, offset: int) -> None:
        """To `offset` of the slot that lies at this address."""
        for rows in group:
            if rows.count == 1:
                _memcpy(slot_address + offset, rows.address, rows.length)
            else:
                np.copyto(_packed(slot, rows, offset), self._array(rows))
            offset += rows.length * rows.count

    def copy_out(self, group: Sequence[Rows], slot_address: int, slot: memoryview, offset: int) -> None:
        for rows in group:
            if rows.count == 1:
                _memcpy(rows.address, slot_address + offset, rows.length)
            else:
                np.copyto(self._array(rows), _packed(slot, rows, offset))
            offset += rows.length * rows.count

    def digest(self, group: Sequence[Rows], state: "xxhash.xxh3_64") -> None:
        update, window = state.update, self._window
        for rows in group:
            start = rows.address - self._first
            for _ in range(rows.count):
                update(window[start : start + rows.length])
                start += rows.stride

    def _array(self, rows: Rows) -> npt.NDArray[np.uint8]:
        shape, strides = (rows.count, rows.length), (rows.stride, 1)
        return np.ndarray(shape, np.uint8, self._window, rows.address - self._first, strides)


def _packed(slot: memoryview, rows: Rows, offset: int) -> npt.NDArray[np.uint8]:
    return np.ndarray((rows.count, rows.length), np.uint8, slot, offset)


def _even(addresses: Int64Array, lengths: Int64Array, block_bytes: Sequence[int]) -> list[list[Rows]]:
    """Blocks of equally many pieces of one length, at least two; those equally far apart are one run. Empty
    for others."""
    length, pieces = int(lengths[0]) if len(lengths) else 0, len(lengths) // (len(block_bytes) or 1)
    sizes = set(block_bytes)
    if pieces < 2 or sizes != {pieces * length} or len(lengths) != pieces * len(block_bytes):
        return []
    if not (lengths == length).all():
        return []
    table = addresses.reshape(-1, pieces)
    steps = np.diff(table, axis=1)
    even = (steps == steps[:, :1]).all(axis=1).tolist()
    rows = zip(even, table, table[:, 0].tolist(), steps[:, 0].tolist(), strict=True)
    return [
        [Rows(first, length, pieces, step)] if is_even else [Rows(one, length) for one in places.tolist()]
        for is_even, places, first, step in rows
    ]


def _uneven(addresses: Int64Array, lengths: Int64Array, block_bytes: Sequence[int]) -> list[list[Rows]]:
    rows = [Rows(a, n) for a, n in zip(addresses.tolist(), lengths.tolist(), strict=True)]
    return [rows[pieces] for pieces in _borders(lengths, block_bytes)]


def blocks_of(spans: Spans, block_bytes: Sequence[int]) -> list[Spans]:
    """The pieces of each of the blocks that follow each other in `spans`. Errors: TransferError for pieces
    that do not make up such blocks."""
    return [spans.cut(pieces) for pieces in _borders(spans.lengths, block_bytes)]


def _borders(lengths: Int64Array, block_bytes: Sequence[int]) -> Iterator[slice]:
    """Which pieces each block has."""
    ends, wanted = np.cumsum(lengths), np.cumsum(np.asarray(block_bytes, np.int64))
    bounds = np.searchsorted(ends, wanted, side="left") + 1
    whole = len(lengths) > 0 and int(ends[-1]) == int(wanted[-1] if len(wanted) else -1)
    if not whole or not np.array_equal(ends[bounds - 1], wanted):
        raise TransferError("kv pool: the pieces do not make up the blocks")
    yield from starmap(slice, pairwise([0, *bounds.tolist()]))


# -- copies


class CopyOutcome(StrEnum):
    DONE = "done"
    MOVED = "moved"  # the reservation or the block ended meanwhile: what was copied is worth nothing
    CORRUPT = "corrupt"  # other bytes than were written: the manager must know
    UNFIT = "unfit"  # the format of the pool cannot hold this block


@dataclass(frozen=True, slots=True)
class Copied:
    """checksum: xxh3 of what was stored, or of what was found by a load."""

    outcome: CopyOutcome
    checksum: int = 0

    @classmethod
    def stored(cls, checksum: int, is_current: bool) -> "Copied":
        """Returns the outcome of a copy into a slot. is_current: after the copy, the slot still belonged to
        the use that it was made for."""
        return cls(CopyOutcome.DONE, checksum) if is_current else MOVED

    @classmethod
    def loaded(cls, slot: Slot, checksum: int, is_current: bool) -> "Copied":
        if not is_current:
            return MOVED
        return cls(CopyOutcome.DONE if checksum == slot.checksum else CopyOutcome.CORRUPT, checksum)


MOVED = Copied(CopyOutcome.MOVED)


class PoolAccess(Protocol):
    """Copies between slots and a worker's memory; one thread at a time. Blocking."""

    def store(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """Fills reserved slots, and leaves the checksum beside each that is DONE. Errors: TransferError;
        none of them is committed then."""

    def load(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """Copies leased blocks out. Where the outcome is not DONE, and after an error, the worker's memory
        holds garbage. Errors: TransferError."""

    def close(self) -> None:
        """Idempotent. Nothing touches the worker's memory any more."""


# What is copied before it is digested, while it is in the second cache of a core: that costs a fifth of the
# copy, where another pass over memory would cost half.
_GROUP_BYTES = 512 << 10
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

    def close(self) -> None:
        """Does nothing: nothing is under way."""

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
                return MOVED
            self._memory.copy_in(group, address, view, offset)
            self._memory.digest(group, state)
            offset += sum(rows.total_bytes for rows in group)
        return Copied.stored(state.intdigest(), self._arena.is_current(slot))

    def _load(self, slot: Slot, block: list[Rows]) -> Copied:
        """Digests the slot, after the copy: what a foreign write had spoiled by then is still spoiled."""
        state, offset = xxhash.xxh3_64(), 0
        address, view = self._arena.place(slot)
        for group in _groups(block, _GROUP_BYTES):
            self._memory.copy_out(group, address, view, offset)
            start, offset = offset, offset + sum(rows.total_bytes for rows in group)
            state.update(view[start:offset])
        return Copied.loaded(slot, state.intdigest(), self._arena.is_current(slot))


def _groups(block: list[Rows], most_bytes: int) -> Iterator[list[Rows]]:
    """Groups of at most so many bytes, or of one piece."""
    if len(block) == 1:
        yield from ([part] for part in block[0].cut(most_bytes))
        return
    each = max(1, most_bytes * len(block) // (sum(rows.total_bytes for rows in block) or 1))
    for first in range(0, len(block), each):
        yield block[first : first + each]
