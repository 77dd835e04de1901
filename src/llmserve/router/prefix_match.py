"""What of a prompt is held where, as the prefix index knew it when it was asked. Pure.

A prediction: blocks come and go, and the engine that runs the prompt looks for itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory import KvTier


@dataclass(frozen=True, slots=True)
class StoredRun:
    """Blocks start up to stop (not included) of the prompt are in this tier of the KV store, and in no
    faster one."""

    start: int
    stop: int
    tier: KvTier

    @property
    def blocks(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Counted in full blocks of the prompt, of block_tokens tokens each (0: nothing is known).

    device_blocks: of each worker whose device has the first block: how many leading ones it has.
    stored: what any worker could load from the KV store, in the order of the prompt; there may be gaps."""

    block_tokens: int = 0
    device_blocks: Mapping[WorkerId, int] = field(default_factory=dict)
    stored: tuple[StoredRun, ...] = ()

    def on_device(self, worker_id: WorkerId) -> int:
        """Leading blocks on the device of this worker."""
        return self.device_blocks.get(worker_id, 0)

    def loadable(self, have_blocks: int) -> tuple[StoredRun, ...]:
        """What the store has right after so many leading blocks, up to the first gap."""
        runs: list[StoredRun] = []
        at = have_blocks
        for run in self.stored:
            if run.start > at:
                break
            if run.stop > at:
                runs.append(StoredRun(at, run.stop, run.tier))
                at = run.stop
        return tuple(runs)

    def reach(self, have_blocks: int) -> int:
        """Leading blocks that need not be computed where so many are on the device."""
        runs = self.loadable(have_blocks)
        return runs[-1].stop if runs else have_blocks

    def cached_tokens(self, worker_id: WorkerId, prompt_tokens: int) -> int:
        """Of the prompt, what this worker need not compute."""
        return self._tokens(self.reach(self.on_device(worker_id)), prompt_tokens)

    def best_cached_tokens(self, prompt_tokens: int) -> int:
        """Of the prompt, what the worker that has most of it need not compute."""
        most = max(map(self.reach, set(self.device_blocks.values())), default=0)
        return self._tokens(max(most, self.reach(0)), prompt_tokens)

    def _tokens(self, blocks: int, prompt_tokens: int) -> int:
        """An engine computes at least the last token, and so its block."""
        if not self.block_tokens:
            return 0
        return min(blocks, max(0, prompt_tokens - 1) // self.block_tokens) * self.block_tokens
