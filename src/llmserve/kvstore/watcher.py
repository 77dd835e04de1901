"""What one watcher of the directory has not been told yet. Pure.

It merges: a block that came and went meanwhile costs nothing or one entry. So what waits for a watcher is
never more than the directory holds and, of each holder, MOST_REMOVED; beyond that the watcher is told all of
that holder anew, which is what it is told of every holder first.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from llmserve.core.ids import BlockHash
from llmserve.kvstore.directory import BlockReport, Directory, Holder

# Some 350 KB of message.
PIECE_BLOCKS = 10_000
MOST_REMOVED = 200_000


@dataclass(frozen=True, slots=True)
class Told:
    """One WatchReport (kvmanager.proto)."""

    holder: Holder
    sequence: int
    anew: bool = False
    dropped: bool = False
    removed: tuple[BlockHash, ...] = ()
    stored: tuple[BlockHash, ...] = ()


@dataclass(slots=True)
class _Untold:
    anew: bool = False
    removed: dict[BlockHash, None] = field(default_factory=dict)
    stored: dict[BlockHash, None] = field(default_factory=dict)


class Watcher:
    """Fed with every report that was applied and every holder that was dropped; asked with `take`.
    changed: called when there is something to take."""

    def __init__(
        self, directory: Directory, changed: Callable[[], object], most_removed: int = MOST_REMOVED
    ) -> None:
        self._directory, self._changed, self._most_removed = directory, changed, most_removed
        self._untold: dict[Holder, _Untold] = {}
        self._dropped: dict[Holder, None] = {}
        self._sequences: dict[Holder, int] = {}
        for snapshot in directory.snapshots():
            self.applied(snapshot)

    def applied(self, report: BlockReport) -> None:
        holder = report.holder
        untold = self._untold.setdefault(holder, _Untold())
        if report.snapshot or report.cleared:  # as the first report of a holder is
            self._dropped.pop(holder, None)
            untold = self._untold[holder] = _Untold(anew=True)
        _remove(untold, report.removed)
        untold.stored |= dict.fromkeys(report.stored)
        if len(untold.removed) > self._most_removed:
            self._untold[holder] = _Untold(True, stored=dict.fromkeys(self._directory.hashes_of(holder)))
        self._changed()

    def dropped(self, holder: Holder) -> None:
        self._untold.pop(holder, None)
        if holder in self._sequences:
            self._dropped[holder] = None
            self._changed()

    def take(self) -> Told | None:
        """The next of what is untold, in pieces of PIECE_BLOCKS; None: nothing is."""
        if self._dropped:
            holder = next(iter(self._dropped))
            del self._dropped[holder], self._sequences[holder]
            return Told(holder, 1, dropped=True)
        for holder, untold in self._untold.items():
            return self._piece(holder, untold)
        return None

    def _piece(self, holder: Holder, untold: _Untold) -> Told:
        sequence = self._sequences[holder] = self._sequences.get(holder, 0) + 1
        removed = _cut(untold.removed, PIECE_BLOCKS)
        stored = _cut(untold.stored, PIECE_BLOCKS - len(removed))
        told = Told(holder, sequence, untold.anew, removed=removed, stored=stored)
        untold.anew = False
        del self._untold[holder]
        if untold.removed or untold.stored:  # after the others, so that a large one does not hold them up
            self._untold[holder] = untold
        return told


def _remove(untold: _Untold, hashes: Iterable[BlockHash]) -> None:
    for block_hash in hashes:
        untold.stored.pop(block_hash, None)
        if not untold.anew:
            untold.removed[block_hash] = None


def _cut(hashes: dict[BlockHash, None], most: int) -> tuple[BlockHash, ...]:
    """Takes the first ones out."""
    first = tuple(islice(hashes, most))
    for block_hash in first:
        del hashes[block_hash]
    return first
