"""Which KV manager keeps which block, when there are several. Pure.

A prompt's blocks are cut into runs of `run_blocks`, counted from its beginning. A run's owner is the manager
that wins the rendezvous (highest random weight) for the hash of the run's first block. That hash names the
whole prefix before it: prompts that share a prefix share its runs, and every process finds the same owner
without asking anyone. A look-up asks one manager per run instead of one per block, and a long shared prefix
is spread over several managers run by run. When a manager comes or goes, only its own runs move.

The owner of a block is known only together with the blocks before it, back to the beginning of its run:
whoever stores or looks up has the prompt's hashes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import xxhash

from llmserve.core.ids import BlockHash

RUN_BLOCKS = 64
_HASH_RANGE = float(1 << 64)


@dataclass(frozen=True, slots=True)
class Shard:
    """Blocks `start` up to `stop` (not included) of a prompt, which this manager keeps."""

    manager: str
    start: int
    stop: int


class Sharding:
    def __init__(self, weights: Mapping[str, float], run_blocks: int = RUN_BLOCKS) -> None:
        """weights: weight of each manager, in any unit; it gets that share of the runs."""
        assert weights, "no KV manager"
        assert min(weights.values()) > 0, weights
        self._weights = dict(sorted(weights.items()))
        self._seeds = {name: xxhash.xxh3_64_intdigest(name.encode()) for name in self._weights}
        self.run_blocks = run_blocks

    def shards(self, hashes: Sequence[BlockHash]) -> list[Shard]:
        """The shards of a prompt in order, without gaps; neighbours on one manager are one shard."""
        shards: list[Shard] = []
        for start in range(0, len(hashes), self.run_blocks):
            stop = min(start + self.run_blocks, len(hashes))
            manager = self.owner(hashes[start])
            if shards and shards[-1].manager == manager:
                shards[-1] = Shard(manager, shards[-1].start, stop)
            else:
                shards.append(Shard(manager, start, stop))
        return shards

    def owner(self, head: BlockHash) -> str:
        """The manager that keeps the run with this first block."""
        return max(self._weights, key=lambda name: self._score(name, head))

    def _score(self, name: str, head: BlockHash) -> float:
        """Returns -weight / ln(u), with u uniform in (0, 1): a KV manager has the highest score with odds
        that are its weight."""
        drawn = xxhash.xxh3_64_intdigest(head, seed=self._seeds[name])
        return -self._weights[name] / math.log((drawn + 0.5) / _HASH_RANGE)
