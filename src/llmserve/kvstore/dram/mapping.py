"""Shared memory in the address space of this process.

It is mapped at a multiple of a huge page, which Python's mmap cannot do: only so can the kernel use huge
pages for it. It is unmapped when nothing shows it any more, so that no copy under way can lose it.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from llmserve.kvstore.dram.shape import HUGE_PAGE_BYTES, ArenaShape
from llmserve.transfer.base import Int64Array, Region

_ADVISE_HUGE, _POPULATE_WRITE = 14, 23  # madvise of Linux; 5.14
_ANONYMOUS, _SHARED_FIXED = 0x22, 0x11  # private; flags of mmap
_NO_ACCESS, _READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value
_STEP_BYTES = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Mapping:
    """All of an arena, from its file descriptor, which the caller keeps or closes. Errors of the
    constructor: OSError."""

    def __init__(self, fd: int, shape: ArenaShape) -> None:
        self.shape = shape
        self._address = _map_aligned(fd, shape.total_bytes)
        buffer = (ctypes.c_char * shape.total_bytes).from_address(self._address)
        self._memory: npt.NDArray[np.uint8] = np.ndarray(shape.total_bytes, np.uint8, memoryview(buffer))
        weakref.finalize(self._memory, _libc.munmap, self._address, shape.total_bytes).atexit = False
        _libc.madvise(self._address, shape.total_bytes, _ADVISE_HUGE)  # it may fail: advice
        self.generations: Int64Array = self._words(shape.words_offset).view(np.int64)
        self.checksums: npt.NDArray[np.uint64] = self._words(shape.checksums_offset).view(np.uint64)
        self.data: npt.NDArray[np.uint8] = self._memory[shape.data_offset :]
        self.region = Region(self._address + shape.data_offset, shape.capacity_bytes)
        self.front = Region(self._address, shape.front_bytes)

    def _words(self, offset: int) -> npt.NDArray[np.uint8]:
        return self._memory[offset : offset + self.shape.words * 8]

    def head(self, length: int) -> bytes:
        return bytes(self._memory[:length])

    def write_head(self, head: bytes) -> None:
        self._memory[: len(head)] = np.frombuffer(head, np.uint8)

    def view(self, offset: int, length_bytes: int) -> memoryview:
        return self.data[offset : offset + length_bytes].data

    def populate(self) -> None:
        """Gives every page its place in this process now, rather than at its first use (0.5 us each). May
        take a tenth of a second for each GB; lets other threads run; any thread may call it."""
        for address, length in self._steps():
            if _libc.madvise(address, length, _POPULATE_WRITE):
                return

    def close(self) -> None:
        """Idempotent. Memory that others still show stays mapped until these are gone too."""
        self.generations = np.empty(0, np.int64)
        self.checksums = np.empty(0, np.uint64)
        self.data = self._memory = np.empty(0, np.uint8)

    def _steps(self) -> Iterator[tuple[int, int]]:
        for offset in range(0, self.shape.total_bytes, _STEP_BYTES):
            yield self._address + offset, min(_STEP_BYTES, self.shape.total_bytes - offset)


def _map_aligned(fd: int, total_bytes: int) -> int:
    """Takes more address space than is needed, maps the file over an aligned part, gives back the rest."""
    room = total_bytes + HUGE_PAGE_BYTES
    start = _check(_libc.mmap(None, room, _NO_ACCESS, _ANONYMOUS, -1, 0))
    aligned = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    try:
        _check(_libc.mmap(aligned, total_bytes, _READ_WRITE, _SHARED_FIXED, fd, 0))
    except OSError:
        _libc.munmap(start, room)
        raise
    if aligned > start:
        _libc.munmap(start, aligned - start)
    _libc.munmap(aligned + total_bytes, start + room - aligned - total_bytes)
    return aligned


def _check(address: int) -> int:
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address
