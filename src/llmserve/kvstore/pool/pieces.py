"""Copies between a contiguous slot and pieces of other memory, and the digest of what was copied.

The pieces of a block mostly lie equally far apart (a layer after the other). Then they are the rows of one
strided array and numpy copies them in one call, at the speed of memcpy; otherwise each is a memcpy of its
own. Both let other threads run. A digest is taken of a group of pieces right after its copy, while it is
still in the cache: that costs a fifth of the copy, where a second pass over memory would cost two thirds.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Int64Array, Region, Spans
from llmserve.transfer.spans import check_bounds

# What is copied before it is digested: fits beside other things into the second cache of a core.
GROUP_BYTES = 512 << 10

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcpy.restype = None


@dataclass(frozen=True, slots=True)
class Group:
    """Pieces that follow each other in the slot from `offset` on. stride 0: they lie anywhere."""

    offset: int
    addresses: list[int]
    lengths: list[int]
    stride: int = 0


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

    def blocks(self, spans: Spans, block_bytes: Sequence[int]) -> list[list[Group]]:
        """The pieces of blocks that follow each other in `spans`. Errors: TransferError for pieces outside
        of registered memory, or which do not make up such blocks."""
        check_bounds(spans, self._lengths, "local")
        addresses = self._starts[spans.regions] + spans.offsets
        ends = np.cumsum(spans.lengths)
        bounds = np.searchsorted(ends, np.cumsum(np.asarray(block_bytes, np.int64))) + 1
        if not np.array_equal(ends[np.minimum(bounds, len(ends)) - 1], np.cumsum(block_bytes)):
            raise TransferError("kv pool: the pieces do not make up the blocks")
        firsts = [0, *bounds[:-1].tolist()]
        pairs = zip(firsts, bounds.tolist(), strict=True)
        return [list(_groups(addresses[a:b], spans.lengths[a:b])) for a, b in pairs]

    def copy_in(self, group: Group, slot: int, slot_view: memoryview) -> None:
        """From the pieces to the slot at this address."""
        if group.stride:
            np.copyto(self._rows(slot_view, group, group.offset, group.lengths[0]), self._pieces(group))
            return
        target = slot + group.offset
        for address, length in zip(group.addresses, group.lengths, strict=True):
            _memcpy(target, address, length)
            target += length

    def copy_out(self, group: Group, slot: int, slot_view: memoryview) -> None:
        if group.stride:
            np.copyto(self._pieces(group), self._rows(slot_view, group, group.offset, group.lengths[0]))
            return
        source = slot + group.offset
        for address, length in zip(group.addresses, group.lengths, strict=True):
            _memcpy(address, source, length)
            source += length

    def digest(self, group: Group, state: "xxhash.xxh3_64") -> None:
        for address, length in zip(group.addresses, group.lengths, strict=True):
            start = address - self._first
            state.update(self._window[start : start + length])

    def _pieces(self, group: Group) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        return self._rows(self._window, group, group.addresses[0] - self._first, group.stride)

    def _rows(
        self, memory: memoryview, group: Group, offset: int, stride: int
    ) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        shape = (len(group.lengths), group.lengths[0])
        return np.ndarray(shape, np.uint8, memory, offset, (stride, 1))


def _groups(addresses: Int64Array, lengths: Int64Array) -> Iterator[Group]:
    """Of one block, each of about GROUP_BYTES."""
    stride = _stride(addresses, lengths)
    flat, sizes = addresses.tolist(), lengths.tolist()
    offset = first = 0
    while first < len(flat):
        last, taken = first, 0
        while last < len(flat) and (taken == 0 or taken + sizes[last] <= GROUP_BYTES):
            taken += sizes[last]
            last += 1
        yield Group(offset, flat[first:last], sizes[first:last], stride)
        offset, first = offset + taken, last


def _stride(addresses: Int64Array, lengths: Int64Array) -> int:
    """By how much each piece begins after the one before; 0 where that differs."""
    if len(addresses) < 2:
        return 0
    steps = np.diff(addresses)
    even = bool((steps == steps[0]).all() and (lengths == lengths[0]).all())
    return int(steps[0]) if even else 0
