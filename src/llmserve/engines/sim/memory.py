"""The simulated device memory: a few real bytes per token, so that a hand-over moves data.

The cell of a token holds a digest of all tokens up to it and of the salt. A reader that finds other bytes
than its prompt requires got the wrong block, or the wrong part of it.
"""

import hashlib
import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmserve.transfer.base import Region

TOKEN_BYTES = 8

Digests = npt.NDArray[np.uint64]


class KvMemory:
    """One region of cells, block after block. Close it once no transport refers to it. `close` is
    idempotent."""

    def __init__(self, total_blocks: int, block_size_tokens: int) -> None:
        self.block_size_tokens = block_size_tokens
        self._length = total_blocks * block_size_tokens * TOKEN_BYTES
        self._map = mmap.mmap(-1, self._length)

    @property
    def block_bytes(self) -> int:
        return self.block_size_tokens * TOKEN_BYTES

    def region(self) -> Region:
        return Region(address=int(self._cells().ctypes.data), length_bytes=self._length)

    def read(self, block_ids: Sequence[int], tokens: range) -> Digests:
        """Returns the cells of these tokens of a prompt. block_ids: begins with the block of the first
        token."""
        return self._cells()[self._places(block_ids, tokens)]

    def write(self, block_ids: Sequence[int], tokens: range, digests: Digests) -> None:
        self._cells()[self._places(block_ids, tokens)] = digests

    def close(self) -> None:
        self._map.close()

    def _cells(self) -> Digests:
        return np.frombuffer(self._map, dtype=np.uint64)

    def _places(self, block_ids: Sequence[int], tokens: range) -> npt.NDArray[np.int64]:
        size = self.block_size_tokens
        index, inside = np.divmod(np.arange(tokens.start, tokens.stop), size)
        places: npt.NDArray[np.int64] = np.asarray(block_ids)[index - tokens.start // size] * size + inside
        return places


def first_digest(salt: str) -> Digests:
    """Returns the digest before the first token."""
    return np.frombuffer(hashlib.sha256(salt.encode()).digest()[:8], dtype=np.uint64)


def next_digests(before: np.uint64, first: int, tokens: Sequence[int]) -> Digests:
    """Returns the digests of tokens that follow one with the digest `before`. first: the number of the first
    token. Digests are sums of well mixed words (the finisher of splitmix64): every token changes every later
    digest."""
    words = np.asarray(tokens, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words += np.arange(first, first + len(tokens), dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.cumsum(words ^ (words >> np.uint64(31)), dtype=np.uint64) + before
