"""Which blocks are worth writing to a slower tier: not those that nobody asks for twice. Pure.

DRAM takes every block in: a write there is cheap, and its eviction policy is the probation. What DRAM
evicts is written to a full tier below only when it is proven: it was asked for at least twice, or it goes
on from such a block of a conversation. In a conversation each turn goes on from a block that was asked
for a few times. What goes on from a block that everybody shares, such as a system prompt, is still new.
So a conversation loses at most its second turn, and only if that comes after DRAM has forgotten it.
"""

from collections.abc import Sequence

import numpy as np

from llmserve.core.ids import BlockHash
from llmserve.kvstore.eviction.sketch import FrequencySketch

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
