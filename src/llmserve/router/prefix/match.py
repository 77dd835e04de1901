"""What of a prompt is held where, before it is placed. Pure; made by the prefix index, read by scorers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory.directory import KvTier


@dataclass(frozen=True, slots=True)
class TierRun:
    """Blocks in a row that the same tier of the KV store holds (the fastest that does); tier None: no
    tier holds them, only the device cache of some worker."""

    tier: KvTier | None
    blocks: int


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """In leading full blocks of the prompt, of block_tokens tokens (0: nothing is known). device: how many a
    worker has in its own cache; a worker that has none is not named. tiers: in order, up to the first block
    that nobody holds."""

    device: Mapping[WorkerId, int] = field(default_factory=dict)
    tiers: tuple[TierRun, ...] = ()
    block_tokens: int = 0

    def device_blocks(self, worker_id: WorkerId) -> int:
        return self.device.get(worker_id, 0)

    def loadable(self, worker_id: WorkerId) -> list[TierRun]:
        """What the worker could load after what it has itself: no gap, so it ends where no tier holds
        the next block."""
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
        """Of the prompt, what this worker need not compute."""
        return self._tokens(self._reach(self.device_blocks(worker_id)), prompt_tokens)

    def best_cached_tokens(self, prompt_tokens: int) -> int:
        """Of the prompt, what the worker that has most of it need not compute."""
        most = max(map(self._reach, {0, *self.device.values()}))
        return self._tokens(most, prompt_tokens)

    def _reach(self, have_blocks: int) -> int:
        """Leading blocks that need not be computed where so many are in the worker's own cache."""
        stop = 0
        for run in self.tiers:
            stop += run.blocks
            if run.tier is None and stop > have_blocks:
                break
            have_blocks = max(have_blocks, stop)
        return have_blocks

    def _tokens(self, blocks: int, prompt_tokens: int) -> int:
        """An engine computes at least the last token, and so its block."""
        if not self.block_tokens:
            return 0
        return min(blocks, max(0, prompt_tokens - 1) // self.block_tokens) * self.block_tokens
