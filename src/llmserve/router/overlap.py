"""What of one prompt a worker need not compute: its own cache is free, the tiers below cost time. Pure."""

from typing import NamedTuple

from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory import KvTier
from llmserve.router.prefix_match import PrefixMatch
from llmserve.router.worker import KvShape


class TierSpeed(NamedTuple):
    fixed_seconds: float
    bytes_per_second: float


# Of one loading into an engine, checks included: the order of what docs/performance.md measures.
TIER_SPEEDS = {
    KvTier.DRAM: TierSpeed(0.001, 5e9),
    KvTier.NVME: TierSpeed(0.003, 1.5e9),
    KvTier.OBJECT: TierSpeed(0.050, 0.2e9),
}


class Load(NamedTuple):
    """So many tokens can be loaded in this time, after those before them."""

    tokens: int
    seconds: float


class Held(NamedTuple):
    """device_tokens: in the worker's own cache. loads: what it can load after them, in order."""

    device_tokens: int
    loads: list[Load]


class Overlap:
    """Of one prompt, over all workers. Workers with equally many blocks are worked out once: this is asked
    of every worker at every placement."""

    def __init__(self, match: PrefixMatch, prompt_tokens: int, shape: KvShape) -> None:
        self._match = match
        self._block_tokens = shape.block_size_tokens
        self._block_bytes = shape.bytes_per_token * shape.block_size_tokens
        # An engine computes at least the last token, whatever it has.
        self._most_tokens = max(0, prompt_tokens - 1) // max(1, self._block_tokens) * self._block_tokens
        self._known: dict[int, Held] = {}

    def at(self, worker_id: WorkerId) -> Held:
        have = self._match.device_blocks(worker_id)
        held = self._known.get(have)
        if held is None:
            tokens = min(have * self._block_tokens, self._most_tokens)
            held = self._known[have] = Held(tokens, self._loads(worker_id, self._most_tokens - tokens))
        return held

    def _loads(self, worker_id: WorkerId, left_tokens: int) -> list[Load]:
        loads: list[Load] = []
        for run in self._match.loadable(worker_id):
            speed = TIER_SPEEDS.get(run.tier) if run.tier else None
            tokens = min(run.blocks * self._block_tokens, left_tokens)
            if speed is None or tokens <= 0:
                break
            left_tokens -= tokens
            size_bytes = tokens / self._block_tokens * self._block_bytes
            loads.append(Load(tokens, speed.fixed_seconds + size_bytes / speed.bytes_per_second))
        return loads
