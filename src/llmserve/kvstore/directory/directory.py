"""Which tiers of which nodes hold which block: block hash -> holders. Pure.

A holder is one tier of one node: the device cache of a worker, or the DRAM, NVMe or object tier of a KV
manager. Each holder sends numbered reports: a snapshot, then changes. The directory notices a missing report
by the number of the next one; it then ignores changes and keeps its older state until a new snapshot comes.

A replica is another directory. It applies `snapshots`, then every report that was APPLIED here, and drops
what is dropped here. It notices and heals missing reports in the same way.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from llmserve.core.ids import BlockHash

# Some 250 bytes each; docs/kv-policies.md has the figure.
MOST_BLOCKS = 8_000_000
_MOST_SHARED_MASKS = 1 << 16


class KvTier(StrEnum):
    DEVICE = "device"
    DRAM = "dram"
    NVME = "nvme"
    OBJECT = "object"


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """node: name of a worker for DEVICE, otherwise "KV manager/storage class"."""

    node: str
    tier: KvTier = KvTier.DEVICE


@dataclass(frozen=True, slots=True)
class BlockReport:
    """Changes of one holder, to be applied in the order cleared, removed, stored.

    snapshot: `stored` is all that the holder has. epoch: incarnation of the holder. sequence: number of the
    report in this epoch, without gaps."""

    holder: Holder
    epoch: int
    sequence: int
    snapshot: bool = False
    cleared: bool = False
    removed: Sequence[BlockHash] = ()
    stored: Sequence[BlockHash] = ()


class Applied(Enum):
    APPLIED = "applied"
    RESYNC = "resync"  # a report is missing: a snapshot is needed
    IGNORED = "ignored"  # seen before, of an older epoch, or a snapshot is on its way


@dataclass(slots=True)
class _Held:
    """One incarnation of a holder.

    bit: its place in the masks. sequence: last report, or None when a snapshot is needed. hashes: its blocks,
    as the keys of a dict: Python's garbage collector looks into a set of a million bytes objects, which stops
    the process for 0.2 s, but not into such a dict."""

    epoch: int
    bit: int
    sequence: int | None = None
    resync_asked: bool = False
    hashes: dict[BlockHash, None] = field(default_factory=dict)


class Directory:
    """One dict entry for each block: a holder is a bit, and the holders of a block are an int. Blocks beyond
    most_blocks are not recorded, and look like a miss."""

    def __init__(self, most_blocks: int = MOST_BLOCKS) -> None:
        self._most_blocks = most_blocks
        self._held: dict[Holder, _Held] = {}
        self._holders: dict[int, Holder] = {}
        self._masks: dict[BlockHash, int] = {}
        self._tier_masks = dict.fromkeys(KvTier, 0)
        self._shared: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of distinct blocks."""
        return len(self._masks)

    def __repr__(self) -> str:
        return f"<Directory blocks={len(self)} holders={sorted(self._held)}>"

    def apply(self, report: BlockReport) -> Applied:
        held = self._held.get(report.holder)
        if held and report.epoch < held.epoch:
            return Applied.IGNORED
        if held is None or report.epoch > held.epoch:
            self.drop(report.holder)
            held = self._add(report.holder, report.epoch)
        if report.snapshot:
            self._replace(held, report.stored)
            held.sequence, held.resync_asked = report.sequence, False
            return Applied.APPLIED
        return self._apply_change(held, report)

    def drop(self, holder: Holder) -> None:
        """Forgets a holder and what it held."""
        held = self._held.pop(holder, None)
        if held:
            self._remove(held, list(held.hashes))
            del self._holders[held.bit]
            self._tier_masks[holder.tier] &= ~(1 << held.bit)

    def snapshots(self) -> Iterator[BlockReport]:
        """One snapshot of each holder whose state is known, for a replica."""
        for holder, held in self._held.items():
            if held.sequence is not None:
                yield BlockReport(holder, held.epoch, held.sequence, snapshot=True, stored=tuple(held.hashes))

    def blocks_of(self, holder: Holder) -> int:
        held = self._held.get(holder)
        return len(held.hashes) if held else 0

    def mask(self, block_hash: BlockHash) -> int:
        """The holders of a block as bits, for `holders`; 0 when nobody holds it."""
        return self._masks.get(block_hash, 0)

    def holders(self, mask: int) -> tuple[Holder, ...]:
        """The holders in a mask that was read since the last change."""
        holders: list[Holder] = []
        while mask:
            lowest = mask & -mask
            holders.append(self._holders[lowest.bit_length() - 1])
            mask ^= lowest
        return tuple(holders)

    def tier_mask(self, tier: KvTier) -> int:
        """The mask of all holders of this tier."""
        return self._tier_masks[tier]

    def hashes_of(self, holder: Holder) -> Collection[BlockHash]:
        """The blocks of a holder, valid until the next change."""
        held = self._held.get(holder)
        return held.hashes if held else ()

    def prefix_blocks(self, hashes: Iterable[BlockHash]) -> dict[Holder, int]:
        """Number of leading blocks that each holder of the first block holds."""
        prefix: dict[Holder, int] = {}
        holding, count = -1, 0
        for block_hash in hashes:
            still = holding & self._masks.get(block_hash, 0)
            if count and still != holding:
                prefix.update(dict.fromkeys(self.holders(holding & ~still), count))
            holding = still
            if not holding:
                return prefix
            count += 1
        if count:
            prefix.update(dict.fromkeys(self.holders(holding), count))
        return prefix

    def check_integrity(self) -> None:
        """Raises AssertionError if the masks and the blocks of the holders differ."""
        expected: dict[BlockHash, int] = {}
        for held in self._held.values():
            for block_hash in held.hashes:
                expected[block_hash] = expected.get(block_hash, 0) | 1 << held.bit
        assert expected == self._masks, self
        assert {held.bit: holder for holder, held in self._held.items()} == self._holders, self
        assert len(self) <= self._most_blocks, self

    # -- parts

    def _apply_change(self, held: _Held, report: BlockReport) -> Applied:
        if held.sequence is not None and report.sequence <= held.sequence:
            return Applied.IGNORED
        if held.sequence is None or report.sequence != held.sequence + 1:
            return self._ask_resync(held)
        self._remove(held, list(held.hashes) if report.cleared else report.removed)
        self._store(held, report.stored)
        held.sequence = report.sequence
        return Applied.APPLIED

    def _ask_resync(self, held: _Held) -> Applied:
        """Asks once; changes that were on their way are ignored until the snapshot comes."""
        asked, held.resync_asked = held.resync_asked, True
        held.sequence = None
        return Applied.IGNORED if asked else Applied.RESYNC

    def _add(self, holder: Holder, epoch: int) -> _Held:
        bit = next(bit for bit in range(len(self._holders) + 1) if bit not in self._holders)
        self._holders[bit] = holder
        self._tier_masks[holder.tier] |= 1 << bit
        held = self._held[holder] = _Held(epoch, bit)
        return held

    def _replace(self, held: _Held, hashes: Sequence[BlockHash]) -> None:
        """Costs little if little has changed, as after a gap."""
        self._remove(held, held.hashes.keys() - hashes)
        self._store(held, [block_hash for block_hash in hashes if block_hash not in held.hashes])

    def _store(self, held: _Held, hashes: Sequence[BlockHash]) -> None:
        bit, masks, kept = 1 << held.bit, self._masks, held.hashes
        room = self._most_blocks - len(masks)
        for block_hash in hashes:
            mask = masks.get(block_hash, 0)
            if not mask and not room:
                continue
            room -= not mask
            masks[block_hash] = self._one_object(mask | bit)
            kept[block_hash] = None

    def _remove(self, held: _Held, hashes: Iterable[BlockHash]) -> None:
        bit, masks = 1 << held.bit, self._masks
        for block_hash in held.hashes.keys() & hashes:
            del held.hashes[block_hash]
            if mask := masks[block_hash] & ~bit:
                masks[block_hash] = self._one_object(mask)
            else:
                del masks[block_hash]

    def _one_object(self, mask: int) -> int:
        """Lets blocks with the same holders share one int: with many holders it is most of an entry."""
        if len(self._shared) >= _MOST_SHARED_MASKS:
            self._shared.clear()
        return self._shared.setdefault(mask, mask)
