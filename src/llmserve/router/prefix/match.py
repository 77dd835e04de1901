"""Which blocks of a prompt are held where, before it is placed. The prefix index builds it, placement reads
it. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory.directory import KvTier


@dataclass(frozen=True, slots=True)
class TierRun:
    """Consecutive blocks with the same fastest tier of the KV store. tier None: no tier holds them, only a
    worker's device."""

    tier: KvTier | None
    blocks: int


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Counts leading full blocks of the prompt. block_tokens: tokens of a block; 0: nothing is known.
    device: blocks in a worker's own cache; workers without any are left out. tiers: runs in order, up to
    the first block that nobody holds."""

    device: Mapping[WorkerId, int] = field(default_factory=dict)
    tiers: tuple[TierRun, ...] = ()
    block_tokens: int = 0

    def device_blocks(self, worker_id: WorkerId) -> int:
        return self.device.get(worker_id, 0)

    def loadable(self, worker_id: WorkerId) -> list[TierRun]:
        """Runs that the worker could load after its own blocks. They end before the first block that no
        tier holds."""
        runs: list[TierRun] = []
        have = self.device_blocks(worker_id)
        for run in self.tiers:
            blocks, have = max(0, run.blocks - have), max(0, have - run.blocks)
            if blocks and run.tier is None:
                break
            if blocks:
                runs.append(TierRun(run.tier, blocks))
        return runs

    def cached_tokens(self, worker_id: WorkerId, prompt_tokens: int) -> int:
        """Prompt tokens that this worker need not compute."""
        return self._tokens(self._reach(self.device_blocks(worker_id)), prompt_tokens)

    def best_cached_tokens(self, prompt_tokens: int) -> int:
        """Prompt tokens that the best worker need not compute."""
        most = max(map(self._reach, {0, *self.device.values()}))
        return self._tokens(most, prompt_tokens)

    def _reach(self, have_blocks: int) -> int:
        """Leading blocks that a worker need not compute if its own cache has have_blocks."""
        stop = 0
        for run in self.tiers:
            stop += run.blocks
            if run.tier is None and stop > have_blocks:
                break
            have_blocks = max(have_blocks, stop)
        return have_blocks

    def _tokens(self, blocks: int, prompt_tokens: int) -> int:
        """Tokens of so many blocks. An engine computes at least the last token, and so its block."""
        if not self.block_tokens:
            return 0
        return min(blocks, max(0, prompt_tokens - 1) // self.block_tokens) * self.block_tokens


NO_MATCH = PrefixMatch()
