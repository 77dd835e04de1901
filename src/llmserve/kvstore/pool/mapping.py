"""Shared memory in the address space of this process."""

import contextlib
import ctypes
import mmap

import numpy as np
import numpy.typing as npt

from llmserve.kvstore.pool.shape import ArenaShape
from llmserve.transfer.base import Int64Array, Region

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14; elsewhere pages come at their first use
_STEP_BYTES = 64 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Mapping:
    """All of an arena, from its file descriptor, which the caller keeps or closes. Errors of the
    constructor: OSError."""

    def __init__(self, fd: int, shape: ArenaShape) -> None:
        self.shape = shape
        self._memory = mmap.mmap(fd, shape.total_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            _libc.madvise(self._start(), shape.total_bytes, mmap.MADV_HUGEPAGE)  # advice: it may fail
        self.generations: Int64Array = np.frombuffer(
            self._memory, np.int64, shape.words, offset=shape.words_offset
        )
        self.checksums: npt.NDArray[np.uint64] = np.frombuffer(
            self._memory, np.uint64, shape.words, offset=shape.checksums_offset
        )
        self.data: npt.NDArray[np.uint8] = np.frombuffer(
            self._memory, np.uint8, shape.capacity_bytes, offset=shape.data_offset
        )
        self.region = Region(self.data.ctypes.data, shape.capacity_bytes)

    def head(self, length: int) -> bytes:
        return self._memory[:length]

    def write_head(self, head: bytes) -> None:
        self._memory[: len(head)] = head

    def view(self, offset: int, length_bytes: int) -> memoryview:
        return self.data[offset : offset + length_bytes].data

    def populate(self) -> None:
        """Gives every page its place in this process now, rather than at its first use (0.5 us each). May
        take a tenth of a second for each GB; lets other threads run; any thread may call it."""
        for offset in range(0, self.shape.total_bytes, _STEP_BYTES):
            length = min(_STEP_BYTES, self.shape.total_bytes - offset)
            if _libc.madvise(self._start() + offset, length, _POPULATE_WRITE):
                return

    def close(self) -> None:
        """Idempotent. Memory that views still show stays mapped until these are gone too."""
        self.generations = np.empty(0, np.int64)
        self.checksums = np.empty(0, np.uint64)
        self.data = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):  # then the last view unmaps it
            self._memory.close()

    def _start(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
