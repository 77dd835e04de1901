"""Reports to the directory what a tier holds: gathered for a moment, in pieces that do not block the loop.

The directory knows blocks by their hashes, as routers do.
"""

import asyncio
from collections.abc import Callable, Iterable

from llmserve.core.delta_feed import DeltaFeed
from llmserve.core.ids import BlockHash
from llmserve.kvstore.blocks import hash_in
from llmserve.kvstore.directory.directory import BlockReport, Holder

_GATHER_SECONDS = 0.05
# Some 10 ms of work for the directory. A tier with a million blocks is reported in seconds after a restart.
_PIECE_BLOCKS = 5000


class TierFeed:
    """`changed` is a HeldChanged (kvstore/blocks.py), which the tier calls in the loop."""

    def __init__(self, holder: Holder, report: Callable[[BlockReport], object]) -> None:
        """report: as KVManager.report_tier."""
        self._holder, self._report = holder, report
        self._feed: DeltaFeed[BlockHash] = DeltaFeed()
        self._timer: asyncio.TimerHandle | None = None

    def changed(self, keys: Iterable[BlockHash], held: bool) -> None:
        hashes = map(hash_in, keys)
        if held:
            self._feed.store(hashes)
        else:
            self._feed.remove(hashes)
        self._schedule(_GATHER_SECONDS)

    def close(self) -> None:
        """Idempotent. What waits is not reported."""
        if self._timer:
            self._timer.cancel()

    def _schedule(self, seconds: float) -> None:
        if self._feed.has_changes and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._send)

    def _send(self) -> None:
        self._timer = None
        delta = self._feed.take(_PIECE_BLOCKS)
        self._report(
            BlockReport(
                self._holder,
                epoch=1,  # the directory does not outlive the tier
                sequence=delta.sequence,
                snapshot=delta.is_snapshot,
                removed=delta.removed,
                stored=delta.stored,
            )
        )
        self._schedule(0.0)
