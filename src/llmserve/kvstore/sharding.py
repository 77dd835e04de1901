"""Which KV manager keeps which block, when there are several. Pure.

A prompt's blocks are cut into runs of `run_blocks`, counted from its begin; a run lives on the manager that
wins the rendezvous (highest random weight) for the hash of its first block. As that hash names the whole
prefix before it, prompts that share a prefix share its runs, and every process finds the same manager
without asking anyone. A look-up asks one manager per run instead of one per block; a long shared prefix is
spread over several managers run by run. When a manager comes or goes only its own runs change their place.

A block can be placed only together with those before it, back to the begin of its run: whoever stores or
looks up has the prompt's hashes.
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
    """Blocks start up to stop (not included) of a prompt are on this manager."""

    manager: str
    start: int
    stop: int


class Sharding:
    """weights: of each manager, in any unit, such as its capacity; it gets that share of the runs."""

    def __init__(self, weights: Mapping[str, float], run_blocks: int = RUN_BLOCKS) -> None:
        assert weights, "no KV manager"
        assert min(weights.values()) > 0, weights
        self._weights = dict(sorted(weights.items()))
        self._seeds = {name: xxhash.xxh3_64_intdigest(name.encode()) for name in self._weights}
        self.run_blocks = run_blocks

    def shards(self, hashes: Sequence[BlockHash]) -> list[Shard]:
        """In order, without gaps; neighbours on one manager are one shard."""
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
        """The manager of a run, by its first block."""
        return max(self._weights, key=lambda name: self._score(name, head))

    def _score(self, name: str, head: BlockHash) -> float:
        """-weight / ln(u), u uniform in (0, 1): the winner's odds are the weights."""
        drawn = xxhash.xxh3_64_intdigest(head, seed=self._seeds[name])
        return -self._weights[name] / math.log((drawn + 0.5) / _HASH_RANGE)


@dataclass(frozen=True, slots=True)
class ShardAnswer:
    """Of one manager to one shard: which of its blocks it holds. None: it did not answer."""

    shard: Shard
    held: Sequence[bool] | None


@dataclass(frozen=True, slots=True)
class ShardedRun:
    """usable: the shards to fetch, in order: what is held without a gap from the prompt's begin.
    unanswered: managers that are away. Blocks from the first of theirs on are a miss."""

    blocks: int
    usable: tuple[Shard, ...]
    unanswered: tuple[str, ...]


def merge(answers: Sequence[ShardAnswer]) -> ShardedRun:
    """Answers to all shards of a prompt, in the order of the prompt."""
    usable: list[Shard] = []
    for answer in answers:
        shard, held = answer.shard, _leading(answer)
        if held:
            usable.append(Shard(shard.manager, shard.start, shard.start + held))
        if held < shard.stop - shard.start:
            break
    away = dict.fromkeys(answer.shard.manager for answer in answers if answer.held is None)
    return ShardedRun(usable[-1].stop if usable else 0, tuple(usable), tuple(away))


def _leading(answer: ShardAnswer) -> int:
    if answer.held is None:
        return 0
    assert len(answer.held) == answer.shard.stop - answer.shard.start, "an answer to another question"
    return next((at for at, held in enumerate(answer.held) if not held), len(answer.held))
