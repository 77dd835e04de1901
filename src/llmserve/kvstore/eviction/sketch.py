"""How often a block was asked for lately: a count-min sketch that forgets. Pure.

Eight bytes for each block that is to be remembered. Whenever so many new ones came, all counts are halved:
what was asked for once is forgotten, what was asked for often fades. So the sketch never fills up, however
many blocks come only once, and a new block is taken for a known one in less than 3% of cases.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from llmserve.core.ids import BlockHash

_ROWS = 4
_SLOTS_PER_BLOCK = 2
_MOST = np.uint8(255)
# Odd constants that spread one hash over the rows (multiply-shift hashing).
_SPREAD = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64
).reshape(_ROWS, 1)
_Slots = npt.NDArray[np.uint64]
_Counts = npt.NDArray[np.uint8]


class FrequencySketch:
    def __init__(self, remembered_blocks: int) -> None:
        bits = max(6, (_SLOTS_PER_BLOCK * remembered_blocks - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        self._counts = np.zeros((_ROWS, 1 << bits), dtype=np.uint8)
        self._new_left = self._remembered = (1 << bits) // _SLOTS_PER_BLOCK
        self._rows = np.arange(_ROWS).reshape(_ROWS, 1)

    @property
    def memory_bytes(self) -> int:
        return self._counts.nbytes

    def add(self, keys: Sequence[BlockHash]) -> _Counts:
        """One use of each; returns the counts with it. The keys are distinct."""
        slots = self._slots(keys)
        rows = self._counts[self._rows, slots]
        lowest = rows.min(axis=0)
        # Only the lowest counters rise: the others are too high already.
        grown = np.where((rows == lowest) & (rows < _MOST), rows + np.uint8(1), rows)
        self._counts[self._rows, slots] = grown
        self._age(int((lowest == 0).sum()))
        counts: _Counts = np.minimum(lowest, _MOST - np.uint8(1)) + np.uint8(1)
        return counts

    def counts(self, keys: Sequence[BlockHash]) -> _Counts:
        lowest: _Counts = self._counts[self._rows, self._slots(keys)].min(axis=0)
        return lowest

    # -- parts

    def _slots(self, keys: Sequence[BlockHash]) -> _Slots:
        hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, keys), dtype=np.uint64, count=len(keys))
        slots: _Slots = (hashes * _SPREAD) >> self._shift
        return slots

    def _age(self, new: int) -> None:
        self._new_left -= new
        if self._new_left <= 0:
            self._counts >>= np.uint8(1)
            self._new_left = self._remembered
