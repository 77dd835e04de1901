"""The contract of copies between the memory of a device and packed bytes in pinned host memory.

Implementations: HostCopies, CudaCopies, FakeDevice. All pass tests/conformance/test_copies.py.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmserve.core.errors import TransferError
from llmserve.transfer.base import HOST, Int64Array, Memory, Region, Spans
from llmserve.transfer.spans import RegionTable

Bytes = npt.NDArray[np.uint8]


class Mark(Protocol):
    """A point in a stream of work. It is reached once all work that was put into the stream before it has
    ended. Errors of both methods: TransferError when some of that work failed."""

    def reached(self) -> bool:
        """Looks without waiting."""

    def wait(self) -> None: ...


class Copies(Protocol):
    """Copies between the memory of one device and packed bytes. Any thread may call any method.

    Pieces are given by their addresses and lengths, and their bytes lie back to back in `packed`. That comes
    from `pinned`, or lies in memory that one call of `pin` has pinned. Copies of one direction end in the
    order in which they were started. Memory is in use until the returned mark is reached. Errors of every
    method: TransferError."""

    memory: Memory

    def enter(self) -> None:
        """Makes the device the current one of the calling thread, for libraries that ask for it."""

    def allocate(self, size_bytes: int) -> Region:
        """Returns memory of the device that lives until `close`. Its content is undefined."""

    def pinned(self, size_bytes: int) -> Bytes:
        """Returns host memory that the device can copy from and to. It lives as long as the array."""

    def pin(self, memory: Bytes) -> Callable[[], None]:
        """Lets the device copy from and to host memory of the caller, which is not empty. The returned
        function ends that: it is called once, after the last copy and before the memory is unmapped."""

    def gather(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        """Starts copying pieces of the device into `packed`."""

    def scatter(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        """Starts copying `packed` into pieces of the device."""

    def mark(self) -> Mark:
        """Returns a mark behind all kernels that the calling thread has launched on its current stream."""

    def close(self) -> None:
        """Is called after the last copy has ended. Idempotent."""


class Reached:
    """The mark of work that has ended."""

    def reached(self) -> bool:
        return True

    def wait(self) -> None:
        """Does nothing."""


REACHED = Reached()


class HostCopies:
    """Host memory in the place of a device's: every copy has ended when its method returns."""

    memory = HOST

    def __init__(self) -> None:
        self._allocated: list[Bytes] = []

    def enter(self) -> None:
        """Does nothing: no thread needs a device."""

    def allocate(self, size_bytes: int) -> Region:
        self._allocated.append(np.empty(size_bytes, np.uint8))
        return Region(self._allocated[-1].ctypes.data, size_bytes)

    def pinned(self, size_bytes: int) -> Bytes:
        return np.empty(size_bytes, np.uint8)

    def pin(self, memory: Bytes) -> Callable[[], None]:
        return lambda: None

    def gather(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        for place, start, length in _rows(starts, lengths, packed):
            ctypes.memmove(place, start, length)
        return REACHED

    def scatter(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        for place, start, length in _rows(starts, lengths, packed):
            ctypes.memmove(start, place, length)
        return REACHED

    def mark(self) -> Mark:
        return REACHED

    def close(self) -> None:
        self._allocated.clear()


def places(lengths: Int64Array, packed: Bytes) -> Int64Array:
    """Returns the addresses of the pieces within packed bytes. Errors: TransferError when they do not fit."""
    ends = np.cumsum(lengths)
    if len(ends) and int(ends[-1]) > packed.nbytes:
        raise TransferError(f"pieces of {ends[-1]} bytes do not fit into {packed.nbytes} packed bytes")
    addresses: Int64Array = packed.ctypes.data + ends - lengths
    return addresses


def _rows(starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Iterator[tuple[int, int, int]]:
    return zip(places(lengths, packed).tolist(), starts.tolist(), lengths.tolist(), strict=True)


class RegionCopies:
    """Copies between packed bytes and registered regions, which are host memory or the memory of one device.
    Spans have been checked."""

    def __init__(self, regions: Sequence[Region], copies: Copies) -> None:
        """Errors: TransferError for a region of another memory."""
        for region in regions:
            if region.memory not in (HOST, copies.memory):
                raise TransferError(f"{region.memory} was registered, but copies are made of {copies.memory}")
        self.lengths = tuple(region.length_bytes for region in regions)
        self._table = RegionTable.of(regions)
        self._on_host = np.array([region.memory.on_host for region in regions], np.bool_)
        self._host, self._device = HostCopies(), copies

    def gather(self, spans: Spans, packed: Bytes) -> Mark:
        """Starts copying the spans into `packed`."""
        mark: Mark = REACHED
        for copies, starts, lengths, place in self._runs(spans):
            mark = _behind(mark, copies.gather(starts, lengths, packed[place]))
        return mark

    def scatter(self, spans: Spans, packed: Bytes) -> Mark:
        """Starts copying `packed` into the spans."""
        mark: Mark = REACHED
        for copies, starts, lengths, place in self._runs(spans):
            mark = _behind(mark, copies.scatter(starts, lengths, packed[place]))
        return mark

    def _runs(self, spans: Spans) -> Iterator[tuple[Copies, Int64Array, Int64Array, slice]]:
        """Yields each run of spans of one memory: its copies, addresses, lengths, and place when packed."""
        starts, on_host = self._table.starts(spans), self._on_host[spans.regions]
        borders = [0, *(np.flatnonzero(np.diff(on_host)) + 1).tolist(), len(on_host)]
        at = 0
        for first, after in pairwise(borders):
            lengths = spans.lengths[first:after]
            end = at + int(lengths.sum())
            if end > at:
                copies = self._host if on_host[first] else self._device
                yield copies, starts[first:after], lengths, slice(at, end)
            at = end


def _behind(earlier: Mark, later: Mark) -> Mark:
    """Returns the mark that is reached last: copies of a device end in order, and those of the host at
    once."""
    return earlier if later is REACHED else later
