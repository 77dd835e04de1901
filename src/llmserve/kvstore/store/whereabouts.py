"""Which tier has a block, as of now."""

from collections.abc import Sequence

from llmserve.core.ids import BlockHash
from llmserve.kvstore.blocks import Prompt
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction import BlockAt
from llmserve.kvstore.store.lower_tier import LowerStore


class BlockLocator:
    """lower: fastest first. parts: of a block, one for each rank."""

    def __init__(self, dram: DramTier, lower: Sequence[LowerStore]) -> None:
        self._dram, self._lower = dram, lower

    def below(self, key: BlockHash, parts: int) -> LowerStore | None:
        return next((tier for tier in self._lower if tier.holds(key, parts)), None)

    def stored_run(self, prompt: Prompt) -> int:
        """How many blocks after those it has are stored somewhere, without a gap."""
        wanted, parts = prompt.keys[prompt.have_blocks :], len(prompt.part_bytes)
        missing = (at for at, key in enumerate(wanted) if not self._is_stored(key, parts))
        return next(missing, len(wanted))

    def source(self, prompt: Prompt, key: BlockHash) -> DramTier | LowerStore:
        """Of a stored block."""
        return self._needed_from(prompt, key) or self._dram

    def place(self, prompt: Prompt, key: BlockHash) -> BlockAt:
        """What it takes to have it in DRAM."""
        size, tier = sum(prompt.part_bytes), self._needed_from(prompt, key)
        return BlockAt(key, size, tier.load_seconds(size) if tier else 0.0)

    def _needed_from(self, prompt: Prompt, key: BlockHash) -> LowerStore | None:
        """None: DRAM has it."""
        return None if self._dram.holds(key) else self.below(key, len(prompt.part_bytes))

    def _is_stored(self, key: BlockHash, parts: int) -> bool:
        return self._dram.holds(key) or self.below(key, parts) is not None
