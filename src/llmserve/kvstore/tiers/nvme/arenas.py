"""Page-aligned memory for heads, tails and copies, kept for the next job."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from llmserve.kvstore.tiers.nvme.layout import PAGE, padded

_SMALLEST_BYTES = 1 << 20


class Arena:
    """Pages handed out one after the other until `rewind`."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, size_bytes))
        self._used = 0

    @property
    def size_bytes(self) -> int:
        return len(self._memory)

    def take(self, size_bytes: int) -> memoryview:
        """Whole pages, with whatever they hold. There must be so many left."""
        start, self._used = self._used, self._used + padded(size_bytes)
        assert self._used <= self.size_bytes, "the arena is too small"
        return self._memory[start : self._used]

    def rewind(self) -> None:
        self._used = 0


class Arenas:
    """Used from several threads; holds as many as work at once, each as large as its largest job."""

    def __init__(self) -> None:
        self._free: list[Arena] = []

    @contextmanager
    def borrow(self, size_bytes: int) -> Iterator[Arena]:
        try:
            arena = self._free.pop()
        except IndexError:
            arena = Arena(_SMALLEST_BYTES)
        if arena.size_bytes < size_bytes:
            arena = Arena(padded(size_bytes))
        arena.rewind()
        try:
            yield arena
        finally:
            self._free.append(arena)


def is_aligned(view: memoryview) -> bool:
    return len(view) == 0 or np.frombuffer(view, np.uint8).ctypes.data % PAGE == 0
