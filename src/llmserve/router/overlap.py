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


class Overlap:
    """Of one prompt, over all workers. Workers with equally many blocks are worked out once."""

    def __init__(self, match: PrefixMatch, prompt_tokens: int, shape: KvShape) -> None:
        self._match = match
        self._block_tokens = shape.block_size_tokens
        self._block_bytes = shape.bytes_per_token * shape.block_size_tokens
        # An engine computes at least the last token, whatever it has.
        self._most_tokens = max(0, prompt_tokens - 1) // max(1, self._block_tokens) * self._block_tokens
        self._loads: dict[int, list[Load]] = {}

    @property
    def empty(self) -> bool:
        """Nobody holds anything of it."""
        return not self._match.device and not self._match.tiers

    def device_tokens(self, worker_id: WorkerId) -> int:
        return min(self._match.device_blocks(worker_id) * self._block_tokens, self._most_tokens)

    def loads(self, worker_id: WorkerId) -> list[Load]:
        """What the worker can load after what it has, in order."""
        have = self._match.device_blocks(worker_id)
        loads = self._loads.get(have)
        if loads is None:
            loads = self._loads[have] = self._worked_out(worker_id, have)
        return loads

    def _worked_out(self, worker_id: WorkerId, have_blocks: int) -> list[Load]:
        left, loads = self._most_tokens - have_blocks * self._block_tokens, []
        for run in self._match.loadable(worker_id):
            speed = TIER_SPEEDS.get(run.tier) if run.tier else None
            tokens = min(run.blocks * self._block_tokens, left)
            if speed is None or tokens <= 0:
                break
            left -= tokens
            size_bytes = tokens / self._block_tokens * self._block_bytes
            loads.append(Load(tokens, speed.fixed_seconds + size_bytes / speed.bytes_per_second))
        return loads
