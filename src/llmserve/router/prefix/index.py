"""The router's prefix index: which workers' devices, and which tiers, hold the blocks of a prompt. Pure.

It has one replica of the directory of each KV manager that is followed; a KV manager that is away has none.
Every KV manager knows all devices, and its own tiers.

A match looks at two blocks of each STRIDE, and at blocks between two only where their holders differ: a
holder of a block holds the blocks before it, because tiers and engines evict the last block of a prefix
first. Where that does not hold, the prediction is wrong by less than a stride.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import and_, itemgetter

from llmserve.core.ids import BlockHash, WorkerId
from llmserve.kvstore.directory.directory import Applied, BlockReport, Directory, Holder, KvTier
from llmserve.kvstore.directory.watcher import DirectoryUpdate
from llmserve.kvstore.sharding import RUN_BLOCKS
from llmserve.router.prefix.match import NO_MATCH, PrefixMatch, TierRun

# Neighbouring strides may be on different KV managers.
STRIDE = RUN_BLOCKS
_STORED = (KvTier.DRAM, KvTier.NVME, KvTier.OBJECT)
_BELOW_DRAM = (KvTier.NVME, KvTier.OBJECT)


@dataclass(frozen=True, slots=True)
class HashedPrompt:
    """block_hashes: hashes of the full blocks of block_tokens tokens, in order; none: unknown."""

    block_hashes: Sequence[BlockHash] = ()
    block_tokens: int = 0


NO_PROMPT = HashedPrompt()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks start up to stop (not included) of a prompt. This KV manager has them, and not all of them in
    DRAM."""

    manager: str
    start: int
    stop: int


_Masks = tuple[int, ...]  # of each replica: who holds a block
_Run = tuple[int, int, _Masks]  # start, stop, holders


class PrefixIndex:
    def __init__(self) -> None:
        self._replicas: dict[str, Directory] = {}

    def __repr__(self) -> str:
        return f"<PrefixIndex {self._replicas}>"

    @property
    def blocks(self) -> int:
        """Number of known blocks, counted once for each KV manager that knows them."""
        return sum(map(len, self._replicas.values()))

    # -- what KV managers tell

    def begin(self, manager: str) -> None:
        """A full snapshot of this KV manager follows."""
        self._replicas[manager] = Directory()

    def apply(self, manager: str, update: DirectoryUpdate) -> bool:
        """False: an update is missing; the caller begins again."""
        replica = self._replicas[manager]
        if update.dropped:
            replica.drop(update.holder)
            return True
        report = BlockReport(
            update.holder,
            1,
            update.sequence,
            update.is_snapshot,
            removed=update.removed,
            stored=update.stored,
        )
        return replica.apply(report) is Applied.APPLIED

    def drop(self, manager: str) -> None:
        """The KV manager is away. Idempotent."""
        self._replicas.pop(manager, None)

    @property
    def followed(self) -> list[str]:
        return list(self._replicas)

    # -- what placement asks

    def match(self, prompt: HashedPrompt) -> PrefixMatch:
        if not self._replicas or not prompt.block_hashes:
            return NO_MATCH
        runs = list(self._runs(prompt.block_hashes))
        if not runs:
            return NO_MATCH
        return PrefixMatch(self._device_blocks(runs), self._tier_runs(runs), prompt.block_tokens)

    def below_dram(self, hashes: Sequence[BlockHash]) -> list[Stretch]:
        """The stretches of a prompt of which some blocks lie below DRAM."""
        runs = list(self._runs(hashes)) if self._replicas and hashes else []
        replicas = enumerate(self._replicas.items())
        return [found for at, (name, replica) in replicas for found in _below(name, replica, runs, at)]

    def has_on_device(self, worker_id: WorkerId, block_hash: BlockHash) -> bool:
        holder = Holder(worker_id)
        return any(block_hash in replica.hashes_of(holder) for replica in self._replicas.values())

    def device_blocks(self, worker_id: WorkerId) -> int:
        """Number of blocks that this worker has reported as stored."""
        holder = Holder(worker_id)
        return max((replica.blocks_of(holder) for replica in self._replicas.values()), default=0)

    # -- parts

    def _runs(self, hashes: Sequence[BlockHash]) -> Iterator[_Run]:
        masks = [replica.mask for replica in self._replicas.values()]
        if len(masks) == 1:  # the most of a look-up is spent here
            mask = masks[0]
            return _runs(len(hashes), lambda at: (mask(hashes[at]),))
        return _runs(len(hashes), lambda at: tuple([mask(hashes[at]) for mask in masks]))

    def _device_blocks(self, runs: Sequence[_Run]) -> dict[WorkerId, int]:
        """The longest prefix that any replica knows: a KV manager that has just started does not know all
        blocks yet."""
        longest: dict[WorkerId, int] = {}
        for at, replica in enumerate(self._replicas.values()):
            hold = replica.tier_mask(KvTier.DEVICE)
            ended = 0
            for start, stop, masks in runs:
                _note(longest, replica, hold & ~masks[at], start)
                hold &= masks[at]
                ended = stop
            _note(longest, replica, hold, ended)
        return longest

    def _tier_runs(self, runs: Sequence[_Run]) -> tuple[TierRun, ...]:
        of_tiers = [(tier, [one.tier_mask(tier) for one in self._replicas.values()]) for tier in _STORED]
        stored = [(tier, holders) for tier, holders in of_tiers if any(holders)]
        found = [(_fastest(stored, masks), stop - start) for start, stop, masks in runs]
        grouped = groupby(found, key=itemgetter(0))
        return tuple(TierRun(tier, sum(blocks for _, blocks in run)) for tier, run in grouped)


def _note(longest: dict[WorkerId, int], replica: Directory, mask: int, blocks: int) -> None:
    """These devices hold so many leading blocks."""
    for holder in replica.holders(mask) if blocks else ():
        worker_id = WorkerId(holder.node)
        longest[worker_id] = max(blocks, longest.get(worker_id, blocks))


def _fastest(stored: Iterable[tuple[KvTier, Sequence[int]]], masks: _Masks) -> KvTier | None:
    """stored: the tiers, the fastest first, with the masks of all their holders. None: no tier holds the
    blocks, only a device."""
    for tier, holders in stored:
        if any(map(and_, masks, holders)):
            return tier
    return None


def _below(manager: str, replica: Directory, runs: Sequence[_Run], at: int) -> Iterator[Stretch]:
    dram, below = replica.tier_mask(KvTier.DRAM), sum(map(replica.tier_mask, _BELOW_DRAM))
    for here, neighbours in groupby(runs, key=lambda run: bool(run[2][at] & (dram | below))):
        stretch = list(neighbours)
        if here and not all(masks[at] & dram for _, _, masks in stretch):
            yield Stretch(manager, stretch[0][0], stretch[-1][1])


def _runs(count: int, holders: Callable[[int], _Masks]) -> Iterator[_Run]:
    """Yields runs of blocks with equal holders, up to the first block that nobody holds."""
    start, at, masks = 0, 0, holders(0)
    if not any(masks):
        return
    for look in _looks(count):
        if (there := holders(look)) != masks:
            for change, after in _changes(at, masks, look, there, holders):
                yield start, change, masks
                start, masks = change, after
                if not any(after):
                    return
        at = look
    yield start, count, masks


def _looks(count: int) -> Iterator[int]:
    """Yields the last and the first block of neighbouring strides."""
    for end in range(STRIDE, count, STRIDE):
        yield end - 1
        yield end
    yield count - 1


def _changes(
    low: int, before: _Masks, high: int, after: _Masks, holders: Callable[[int], _Masks]
) -> Iterator[tuple[int, _Masks]]:
    """Yields where the holders change between two blocks, and the holders from there on."""
    if before == after:
        return
    if high - low == 1:
        yield high, after
        return
    middle = (low + high) // 2
    between = holders(middle)
    yield from _changes(low, before, middle, between, holders)
    yield from _changes(middle, between, high, after, holders)
