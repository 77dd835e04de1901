"""The simulated device memory: a few real bytes per block, so that a hand-over moves something.

A block holds the digest that says which tokens it was computed from (core/blocks.next_hash, of a
partial block over the tokens it has). A reader that finds other bytes than its prompt demands was
given the wrong block.
"""

import mmap

import numpy as np

from llmserve.transfer.base import Region

BLOCK_BYTES = 64
_DIGEST_BYTES = 32


class KvMemory:
    """One region of total_blocks * BLOCK_BYTES. `close` once no transport refers to it; idempotent."""

    def __init__(self, total_blocks: int) -> None:
        self._length = total_blocks * BLOCK_BYTES
        self._map = mmap.mmap(-1, self._length)

    def region(self) -> Region:
        view = np.frombuffer(self._map, dtype=np.uint8)
        return Region(address=int(view.ctypes.data), length_bytes=self._length)

    def write(self, block_id: int, digest: bytes) -> None:
        assert len(digest) == _DIGEST_BYTES, "a digest is 32 bytes"
        self.fill(block_id, digest + digest)

    def read(self, block_id: int) -> bytes:
        start = block_id * BLOCK_BYTES
        return self._map[start : start + BLOCK_BYTES]

    def fill(self, block_id: int, content: bytes) -> None:
        start = block_id * BLOCK_BYTES
        self._map[start : start + BLOCK_BYTES] = content

    def holds(self, block_id: int, digest: bytes) -> bool:
        """Both copies, so that a half-arrived block is noticed."""
        return self.read(block_id) == digest + digest

    def close(self) -> None:
        self._map.close()
