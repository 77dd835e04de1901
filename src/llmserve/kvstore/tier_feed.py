"""What a tier holds, told to the directory: gathered for a moment, in pieces that do not hold the loop up."""

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

from llmserve.core.ids import BlockHash
from llmserve.kvstore.directory import BlockReport, Holder

_GATHER_SECONDS = 0.05
# Some 10 ms of work for the directory. A tier with a million blocks is told in seconds after a restart.
_PIECE_BLOCKS = 5000


class TierFeed:
    """One tier's. `changed` is a HeldChanged (store/words.py), called in the loop. report: as
    KVManager.report_tier."""

    def __init__(self, holder: Holder, report: Callable[[BlockReport], object]) -> None:
        self._holder, self._report = holder, report
        self._sequence = 0
        self._changes: dict[BlockHash, bool] = {}  # the last word on each block
        self._timer: asyncio.TimerHandle | None = None

    def changed(self, keys: Iterable[BlockHash], held: bool) -> None:
        self._changes |= dict.fromkeys(keys, held)
        self._schedule(_GATHER_SECONDS)

    def close(self) -> None:
        """Idempotent. What was not told yet is not."""
        if self._timer:
            self._timer.cancel()
        self._changes.clear()

    def _schedule(self, seconds: float) -> None:
        if self._changes and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._tell)

    def _tell(self) -> None:
        self._timer = None
        piece = dict(islice(self._changes.items(), _PIECE_BLOCKS))
        for key in piece:
            del self._changes[key]
        self._sequence += 1
        self._report(
            BlockReport(
                self._holder,
                epoch=1,  # the directory does not outlive the tier
                sequence=self._sequence,
                snapshot=self._sequence == 1,
                removed=[key for key, held in piece.items() if not held],
                stored=[key for key, held in piece.items() if held],
            )
        )
        self._schedule(0.0)
