"""Which worker holds which block: block hash -> workers. Pure.

Fed by sequence-numbered reports: a snapshot, then changes. A missing report is noticed by its
number; until the snapshot that heals it, changes are ignored and the older truth stands.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from llmserve.core.ids import BlockHash, WorkerId


@dataclass(frozen=True, slots=True)
class BlockReport:
    """Changes in order: cleared, removed, stored. snapshot: `stored` is the whole truth."""

    worker_id: WorkerId
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
class _Holder:
    """One incarnation of a worker. bit: its place in the masks; sequence None: needs a snapshot."""

    epoch: int
    bit: int
    sequence: int | None = None
    resync_asked: bool = False
    hashes: set[BlockHash] = field(default_factory=set)


class Directory:
    """A worker is a bit, the holders of a block are an int: one dict entry for each block."""

    def __init__(self) -> None:
        self._holders: dict[WorkerId, _Holder] = {}
        self._workers: dict[int, WorkerId] = {}
        self._masks: dict[BlockHash, int] = {}

    def __len__(self) -> int:
        """Distinct blocks."""
        return len(self._masks)

    def __repr__(self) -> str:
        return f"<Directory blocks={len(self)} workers={sorted(self._holders)}>"

    def apply(self, report: BlockReport) -> Applied:
        holder = self._holders.get(report.worker_id)
        if holder and report.epoch < holder.epoch:
            return Applied.IGNORED
        if holder is None or report.epoch > holder.epoch:
            self.drop(report.worker_id)
            holder = self._add(report.worker_id, report.epoch)
        if report.snapshot:
            self._remove(holder, list(holder.hashes))
            self._store(holder, report.stored)
            holder.sequence, holder.resync_asked = report.sequence, False
            return Applied.APPLIED
        return self._apply_change(holder, report)

    def drop(self, worker_id: WorkerId) -> None:
        """Forgets a worker and what it held."""
        holder = self._holders.pop(worker_id, None)
        if holder:
            self._remove(holder, list(holder.hashes))
            del self._workers[holder.bit]

    def blocks_of(self, worker_id: WorkerId) -> int:
        holder = self._holders.get(worker_id)
        return len(holder.hashes) if holder else 0

    def prefix_blocks(self, hashes: Iterable[BlockHash]) -> dict[WorkerId, int]:
        """For each worker that holds the first block: how many leading ones it holds."""
        prefix: dict[WorkerId, int] = {}
        holding, count = -1, 0
        for block_hash in hashes:
            still = holding & self._masks.get(block_hash, 0)
            if count:
                self._note(prefix, holding & ~still, count)
            holding = still
            if not holding:
                return prefix
            count += 1
        if count:
            self._note(prefix, holding, count)
        return prefix

    def check_integrity(self) -> None:
        """Raises AssertionError when masks and the sets of workers differ."""
        expected: dict[BlockHash, int] = {}
        for holder in self._holders.values():
            for block_hash in holder.hashes:
                expected[block_hash] = expected.get(block_hash, 0) | 1 << holder.bit
        assert expected == self._masks, self
        assert {h.bit: w for w, h in self._holders.items()} == self._workers, self

    # -- parts

    def _apply_change(self, holder: _Holder, report: BlockReport) -> Applied:
        if holder.sequence is not None and report.sequence <= holder.sequence:
            return Applied.IGNORED
        if holder.sequence is None or report.sequence != holder.sequence + 1:
            return self._ask_resync(holder)
        self._remove(holder, list(holder.hashes) if report.cleared else report.removed)
        self._store(holder, report.stored)
        holder.sequence = report.sequence
        return Applied.APPLIED

    def _ask_resync(self, holder: _Holder) -> Applied:
        """Once: until the snapshot comes, the changes that were on their way are ignored."""
        asked, holder.resync_asked = holder.resync_asked, True
        holder.sequence = None
        return Applied.IGNORED if asked else Applied.RESYNC

    def _add(self, worker_id: WorkerId, epoch: int) -> _Holder:
        bit = next(bit for bit in range(len(self._workers) + 1) if bit not in self._workers)
        self._workers[bit] = worker_id
        holder = self._holders[worker_id] = _Holder(epoch, bit)
        return holder

    def _store(self, holder: _Holder, hashes: Sequence[BlockHash]) -> None:
        bit, masks = 1 << holder.bit, self._masks
        for block_hash in hashes:
            masks[block_hash] = masks.get(block_hash, 0) | bit
        holder.hashes.update(hashes)

    def _remove(self, holder: _Holder, hashes: Sequence[BlockHash]) -> None:
        bit, masks = 1 << holder.bit, self._masks
        for block_hash in holder.hashes.intersection(hashes):
            if mask := masks[block_hash] & ~bit:
                masks[block_hash] = mask
            else:
                del masks[block_hash]
        holder.hashes.difference_update(hashes)

    def _note(self, prefix: dict[WorkerId, int], mask: int, count: int) -> None:
        while mask:
            lowest = mask & -mask
            prefix[self._workers[lowest.bit_length() - 1]] = count
            mask ^= lowest
