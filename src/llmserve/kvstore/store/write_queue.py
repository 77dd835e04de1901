"""The blocks that wait to be written to a tier below DRAM.

The caller bounds the bytes that wait (`eviction.writing`). A block is written as it was stored or not at all:
its checksum is compared after it was encoded. The caller learns the outcome, and may turn to the next tier.
"""

import asyncio
import logging
from collections.abc import Sequence

from llmserve.core.clock import Clock
from llmserve.core.ids import BlockHash
from llmserve.kvstore.store.coding import Coder, Outgoing
from llmserve.kvstore.store.contents import TierContents
from llmserve.kvstore.store.medium_log import MediumLog
from llmserve.kvstore.tiers.base import Blob, BlobResult, Tier, TierOutcome

_log = logging.getLogger(__name__)
_BATCH_BYTES = 64 << 20

_Encoded = tuple[Outgoing, list[Blob]]


class WriteQueue:
    """Encodes the blocks that leave DRAM, and writes them to a tier below. Life: run, in a task, while blocks
    are put -> give_up."""

    def __init__(
        self, tier: Tier, contents: TierContents, coder: Coder, clock: Clock, medium: MediumLog
    ) -> None:
        self.bytes = 0  # of DRAM, held by the blocks in the queue
        self._tier, self._contents, self._coder, self._clock = tier, contents, coder, clock
        self._medium = medium
        self._queue: asyncio.Queue[Outgoing] = asyncio.Queue()
        self._writing: set[BlockHash] = set()

    def __contains__(self, key: BlockHash) -> bool:
        """The block waits, or is being written."""
        return key in self._writing

    def keys(self) -> list[BlockHash]:
        """The blocks that wait, or are being written."""
        return list(self._writing)

    def put(self, outgoing: Outgoing) -> None:
        """Queues a block that is neither here nor on the medium."""
        self._writing.add(outgoing.block.key)
        self.bytes += outgoing.size_bytes
        self._queue.put_nowait(outgoing)

    async def drained(self) -> None:
        """Waits until all blocks that were put are written or given up."""
        await self._queue.join()

    def give_up(self) -> None:
        """Ends the waiting blocks as FAILED."""
        while not self._queue.empty():
            self._end(self._queue.get_nowait(), TierOutcome.FAILED)
            self._queue.task_done()

    async def run(self) -> None:
        """Writes for ever."""
        while True:
            batch = await self._next_batch()
            ends = dict.fromkeys((one.block.key for one in batch), TierOutcome.FAILED)
            try:
                ends |= await self._write(batch)
            except Exception:  # a bug of ours: the blocks behind it must not wait for ever
                _log.exception("%s: %d blocks are not stored", self._medium.tier, len(batch))
                for outgoing in batch:
                    if not self._contents.holds(outgoing.block.key, len(outgoing.views)):
                        self._contents.index.remove(outgoing.block.key)
            finally:
                for outgoing in batch:
                    self._end(outgoing, ends[outgoing.block.key])
                    self._queue.task_done()

    def _end(self, outgoing: Outgoing, outcome: TierOutcome) -> None:
        self._writing.discard(outgoing.block.key)
        self.bytes -= outgoing.size_bytes
        self._medium.outcomes["write", outcome] += 1
        self._medium.totals.store_bytes += outgoing.size_bytes if outcome is TierOutcome.DONE else 0
        try:
            outgoing.ended(outcome)
        except Exception:  # a bug of ours, too
            _log.exception("%s: who waited for a block was not told of its end", self._medium.tier)

    async def _next_batch(self) -> list[Outgoing]:
        batch = [await self._queue.get()]
        size = batch[0].size_bytes
        while not self._queue.empty() and size < _BATCH_BYTES:
            batch.append(self._queue.get_nowait())
            size += batch[-1].size_bytes
        return batch

    async def _write(self, batch: Sequence[Outgoing]) -> dict[BlockHash, TierOutcome]:
        """Together: a tier gathers neighbours, and an object is written as a whole."""
        ends: dict[BlockHash, TierOutcome] = {}
        ready: list[_Encoded] = []
        for outgoing in batch:
            blobs = await self._coder.encode(outgoing)
            if blobs is None:
                ends[outgoing.block.key] = TierOutcome.CORRUPT
                _log.warning("%s: a block is not stored: it changed in memory", self._medium.tier)
            elif await self._contents.take_room(outgoing.block, blobs):
                ready.append((outgoing, blobs))
            else:
                ends[outgoing.block.key] = TierOutcome.FULL
        return ends | await self._put(ready)

    async def _put(self, ready: Sequence[_Encoded]) -> dict[BlockHash, TierOutcome]:
        blobs, started = [blob for _, encoded in ready for blob in encoded], self._clock.now()
        try:
            results = await self._tier.write(blobs)
        finally:
            self._medium.totals.store_seconds += self._clock.now() - started
            self._contents.index.unpin([outgoing.block.key for outgoing, _ in ready])
        ends: dict[BlockHash, TierOutcome] = {}
        for outgoing, encoded in ready:
            mine, results = results[: len(encoded)], results[len(encoded) :]
            ends[outgoing.block.key] = await self._put_ended(outgoing.block.key, mine)
        return ends

    async def _put_ended(self, key: BlockHash, results: Sequence[BlobResult]) -> TierOutcome:
        failed = next((result for result in results if result.outcome is not TierOutcome.DONE), None)
        if failed is None:
            self._medium.note("written", TierOutcome.DONE, "")
            self._contents.written(key)
            return TierOutcome.DONE
        self._medium.note("written", failed.outcome, failed.reason)
        await self._contents.forget([key])
        return failed.outcome
