"""Which blocks are worth writing to a slower tier: not those that nobody asks for twice. Pure.

DRAM takes every block in: a write there is cheap, and its eviction policy is the probation. What DRAM
evicts is written to a full tier below only when it is proven: it was asked for at least twice, or it goes
on from such a block of a conversation. In a conversation each turn goes on from a block that was asked
for a few times. What goes on from a block that everybody shares, such as a system prompt, is still new.
So a conversation loses at most its second turn, and only if that comes after DRAM has forgotten it.
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


# From so many uses on a block is shared by many, and says nothing about what follows it.
_SHARED_USES = 8


class Admission:
    def __init__(self, sketch: FrequencySketch, shared_uses: int = _SHARED_USES) -> None:
        self._sketch, self._shared_uses = sketch, shared_uses

    def observe(self, prompt: Sequence[BlockHash]) -> int:
        """To be called once with the blocks of each request, in order, whether held or not. Returns how
        many of the first are proven by it."""
        if not prompt:
            return 0
        reused = self._sketch.add(prompt) >= 2
        proven = len(prompt) if reused.all() else int(np.argmin(reused))
        if proven and self._is_conversation(prompt[proven - 1]):
            return len(prompt)
        return proven

    def _is_conversation(self, last_reused: BlockHash) -> bool:
        return int(self._sketch.counts([last_reused])[0]) < self._shared_uses


def is_admitted(*, proven: bool, has_room: bool) -> bool:
    """Whether a tier below DRAM takes a block in. Free room costs nothing."""
    return proven or has_room
