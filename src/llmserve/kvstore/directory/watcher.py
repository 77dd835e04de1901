"""What one watcher of the directory was not sent yet. Pure.

Of each holder, what waits is never more than the directory holds and `most_removed` removals; beyond that the
watcher gets a new snapshot of the holder, as it does first.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmserve.core.delta_feed import DeltaFeed
from llmserve.core.ids import BlockHash
from llmserve.kvstore.directory.directory import BlockReport, Directory, Holder

# Some 350 KB of message.
PIECE_BLOCKS = 10_000
MOST_REMOVED = 200_000


@dataclass(frozen=True, slots=True)
class DirectoryUpdate:
    """One WatchReport (kvmanager.proto): a delta of one holder, or the news that it was dropped."""

    holder: Holder
    sequence: int
    is_snapshot: bool = False
    dropped: bool = False
    removed: tuple[BlockHash, ...] = ()
    stored: tuple[BlockHash, ...] = ()


class Watcher:
    """The owner of the directory calls `applied` for every report that was applied and `dropped` for every
    holder that was dropped; the watcher's stream calls `take`."""

    def __init__(
        self, directory: Directory, changed: Callable[[], object], most_removed: int = MOST_REMOVED
    ) -> None:
        """changed: called when there is something to take."""
        self._directory, self._changed, self._most_removed = directory, changed, most_removed
        self._feeds: dict[Holder, DeltaFeed[BlockHash]] = {}
        self._waiting: dict[Holder, None] = {}  # holders with something to send, in turn
        self._dropped: dict[Holder, None] = {}
        for snapshot in directory.snapshots():
            self.applied(snapshot)

    def applied(self, report: BlockReport) -> None:
        holder = report.holder
        feed = self._feeds.setdefault(holder, DeltaFeed())
        if report.snapshot or report.cleared:  # as the first report of a holder is
            self._dropped.pop(holder, None)
            feed.reset(())
        feed.remove(report.removed)
        feed.store(report.stored)
        if feed.removals > self._most_removed:
            feed.reset(self._directory.hashes_of(holder))
        self._waiting[holder] = None
        self._changed()

    def dropped(self, holder: Holder) -> None:
        self._waiting.pop(holder, None)
        feed = self._feeds.get(holder)
        if feed and feed.sequence:
            self._dropped[holder] = None
            self._changed()
        elif feed:  # the watcher never learnt of this holder
            del self._feeds[holder]

    def take(self) -> list[DirectoryUpdate]:
        """Returns the next updates, of at most PIECE_BLOCKS blocks together; none when nothing waits."""
        updates: list[DirectoryUpdate] = []
        room = PIECE_BLOCKS
        while room > 0 and (update := self._next(room)) is not None:
            updates.append(update)
            room -= len(update.removed) + len(update.stored)
        return updates

    def _next(self, most_blocks: int) -> DirectoryUpdate | None:
        if self._dropped:
            holder = next(iter(self._dropped))
            del self._dropped[holder], self._feeds[holder]
            return DirectoryUpdate(holder, 1, dropped=True)
        if not self._waiting:
            return None
        holder = next(iter(self._waiting))
        del self._waiting[holder]
        feed = self._feeds[holder]
        delta = feed.take(most_blocks)
        if feed.has_changes:  # after the others, so that a large holder does not hold them up
            self._waiting[holder] = None
        return DirectoryUpdate(
            holder, delta.sequence, delta.is_snapshot, removed=delta.removed, stored=delta.stored
        )
