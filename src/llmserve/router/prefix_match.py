"""What of a prompt is held where, before it is placed. Pure; made by the prefix index, read by scorers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory import KvTier


@dataclass(frozen=True, slots=True)
class TierRun:
    """Blocks in a row that the same tier of the KV store holds (the fastest that does); tier None: no
    tier holds them, only the device cache of some worker."""

    tier: KvTier | None
    blocks: int


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """In leading full blocks of the prompt. device: how many a worker has in its own cache; a worker that
    has none is not named. tiers: in order, up to the first block that nobody holds."""

    device: Mapping[WorkerId, int] = field(default_factory=dict)
    tiers: tuple[TierRun, ...] = ()

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
