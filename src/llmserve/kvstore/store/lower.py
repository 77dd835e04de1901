"""One tier below DRAM, with its book: what it holds, what is written down, and what is brought up.

Blocks come from the pool and go back to it, encoded and decoded on a thread of this tier. What goes down
waits in a queue, whose bytes are bounded by the caller (`eviction.writing`); what comes up does not wait for
it. Trouble of the medium is a miss for whoever asked, and is counted and told; nothing here raises for it.
Whoever writes is told what became of it, and may turn to the next tier.

A block is written as it was stored or not at all: its checksum is compared after it was encoded. What is
read is what was written, or a miss; what turns out lost or damaged is forgotten, here and on the medium, so
that it can be stored anew.

What an earlier process left counts in the book from the start, in the order the tier tells, of nobody and
following nothing; whoever asks for it first takes it over (`adopt`).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from llmserve.core.clock import Clock
from llmserve.core.errors import BlockUnreadable, StartFailed
from llmserve.core.ids import BlockHash, TenantId
from llmserve.core.tasks import TaskOwner
from llmserve.core.tiers import TierTotals
from llmserve.kvstore.eviction import NOBODY, Added, LowerTier, TierBook, WriteMode
from llmserve.kvstore.store.codecs import MakeCodec
from llmserve.kvstore.store.coding import Coder, Incoming, Outgoing, StoredParts, aligned, room_for
from llmserve.kvstore.store.words import HeldChanged, StoredBlock, block_of, nobody_asks, part_key
from llmserve.kvstore.tiers.base import (
    ALIGNMENT_BYTES,
    Blob,
    BlobKey,
    BlobResult,
    Outcome,
    Target,
    Tier,
)
from llmserve.rpc.backoff import Backoff

_log = logging.getLogger(__name__)
_BATCH_BYTES = 64 << 20
_FIRST_GUESS_BYTES_PER_SECOND = 500e6
# One part in so many: else all that is new would push out what is old, and be pushed out.
_KEPT_FOR_PROVEN = 16
_LEARNING = 0.3  # the weight of the last figure
_OPEN_AGAIN_SECONDS = (1.0, 60.0)


@dataclass(frozen=True, slots=True)
class LowerSettings:
    """busy_bytes: see `eviction.writing`; four times as much of the pool is held at most for what goes down.
    opens_later: a medium that cannot be used is tried again and again, and is a miss until then."""

    write_mode: WriteMode = WriteMode.AUTO
    busy_bytes: int = 256 << 20
    opens_later: bool = False


_Encoded = tuple[Outgoing, list[Blob]]


class LowerStore:
    """One event loop. Life: open -> aclose (idempotent; what is queued to be written is given up).

    trouble: why it is not open, in words; empty when it is."""

    def __init__(
        self,
        tier: Tier,
        book: TierBook,
        make_codec: MakeCodec,
        clock: Clock,
        settings: LowerSettings | None = None,
        name: str = "",
    ) -> None:
        self.name, self.kind = name or tier.name, tier.name
        self.book = book
        self.totals = TierTotals()
        self.held_changed: HeldChanged = nobody_asks
        self.settings = settings or LowerSettings()
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()  # by operation
        self.trouble = "not opened yet"
        self._tier, self._clock = tier, clock
        self._coder = Coder(make_codec, f"kv-{self.name}")
        self._queue: asyncio.Queue[Outgoing] = asyncio.Queue()
        self._queued_bytes = 0
        self._writing: set[BlockHash] = set()
        self._strangers: set[BlockHash] = set()  # in the book, of nobody
        self._most_parts = 0  # of any block
        self._tasks = TaskOwner(f"kv-{self.name}")
        self._bytes_per_second = _FIRST_GUESS_BYTES_PER_SECOND

    # -- life

    async def open(self) -> None:
        """Errors: StartFailed, unless it opens later."""
        if self.settings.opens_later:
            self._tasks.spawn("open", self._open_patiently(), fatal=True)
        else:
            await self._open()

    async def aclose(self) -> None:
        self.trouble = "closed"
        await self._tasks.aclose()
        while not self._queue.empty():
            self._end(self._queue.get_nowait(), Outcome.FAILED)
            self._queue.task_done()
        self._coder.close()
        await self._tier.aclose()

    @property
    def is_open(self) -> bool:
        return not self.trouble

    async def _open_patiently(self) -> None:
        backoff = Backoff(*_OPEN_AGAIN_SECONDS)
        while not self.is_open:
            try:
                await self._open()
            except StartFailed as error:
                if error.message != self.trouble:
                    _log.warning("%s: not used until it can be opened: %s", self.name, error.message)
                self.trouble = error.message
                await backoff.pause()

    async def _open(self) -> None:
        await self._tier.open()
        surplus = self._take_stock()
        await self._tier.remove(self._parts_of(surplus))
        self.trouble = ""
        self._tasks.spawn("write", self._write_down(), fatal=True)
        _log.info("%s: open, %d blocks found, %r", self.name, len(self._strangers), self.book)

    def _take_stock(self) -> list[BlockHash]:
        """Into the book. Returns what there is no room for: the capacity may be less than it was."""
        sizes: dict[BlockHash, int] = {}
        for key, size in self._tier.held():
            block, part = block_of(key)
            sizes[block] = sizes.get(block, 0) + _charge(size)
            self._most_parts = max(self._most_parts, part + 1)
        found = {block: self.book.add(block, None, size, NOBODY) for block, size in sizes.items()}
        self._strangers = {block for block, added in found.items() if added is Added.HELD}
        self.held_changed(self._strangers, True)
        return [block for block, added in found.items() if added is not Added.HELD]

    # -- what is there

    @property
    def queued_bytes(self) -> int:
        """Of the pool, held for what goes down."""
        return self._queued_bytes

    def holds(self, key: BlockHash, parts: int) -> bool:
        return self.is_open and all(self._tier.holds([part_key(key, part) for part in range(parts)]))

    def load_seconds(self, size_bytes: int) -> float:
        """What so many bytes of blocks have taken lately."""
        return size_bytes / self._bytes_per_second

    def state(self) -> LowerTier:
        """A full tier has always a little room: less than a block, or what was just given up."""
        most = self.book.capacity_bytes - self.book.capacity_bytes // _KEPT_FOR_PROVEN
        has_room = self.book.used_bytes + self._queued_bytes < most
        return LowerTier(has_room, self._queued_bytes, self.settings.busy_bytes)

    def adopt(self, keys: Sequence[BlockHash], tenant: TenantId) -> None:
        """Blocks of a prompt, in order: what an earlier process left of them is this tenant's now."""
        if not self._strangers:
            return
        for at, key in enumerate(keys):
            if key in self._strangers:
                self._strangers.discard(key)
                self.book.adopt(key, keys[at - 1] if at else None, tenant)

    # -- up

    async def bring_up(self, wanted: Sequence[Incoming]) -> list[int | None]:
        """Fills the views; the checksum (xxh3) of each, or None for a miss, whose view holds garbage. A call
        that is cancelled ends when it has let go of them."""
        started = self._clock.now()
        sizes = self._tier.sizes([one.key for one in wanted])
        buffers = [room_for(one.view, size) for one, size in zip(wanted, sizes, strict=True)]
        targets = [Target(one.key, buffer) for one, buffer in zip(wanted, buffers, strict=True)]
        results = await self._tier.read(targets)
        sums: list[int | None] = []
        for one, target, result in zip(wanted, targets, results, strict=True):
            if result.outcome is Outcome.DONE:
                payload = target.buffer[: result.length_bytes]
                sums.append(await self._decoded(one, result.header, payload))
            else:
                sums.append(None)
                await self._not_read(one.key, result.outcome, result.reason)
        came = sum(len(one.view) for one, found in zip(wanted, sums, strict=True) if found is not None)
        self._learn(came, self._clock.now() - started)
        self.totals.load_bytes += came
        self.totals.load_seconds += self._clock.now() - started
        return sums

    async def _decoded(self, one: Incoming, header: bytes, payload: memoryview) -> int | None:
        try:
            checksum = await self._coder.decode(one, header, payload)
        except BlockUnreadable as error:
            await self._not_read(one.key, Outcome.CORRUPT, error.message)
            return None
        self.outcomes["read", Outcome.DONE] += 1
        return checksum

    async def _not_read(self, key: BlobKey, outcome: Outcome, reason: str) -> None:
        self.outcomes["read", outcome] += 1
        _log.warning("%s: a block is not read: %s", self.name, reason)
        if outcome in (Outcome.MISSING, Outcome.CORRUPT):
            await self._forget([block_of(key)[0]])

    def _learn(self, size_bytes: int, seconds: float) -> None:
        if size_bytes and seconds > 0:
            rate = size_bytes / seconds
            self._bytes_per_second += _LEARNING * (rate - self._bytes_per_second)

    # -- down

    def has(self, block: StoredBlock) -> bool:
        """It is there, or on its way."""
        return block.key in self._writing or self.holds(block.key, len(block.part_bytes))

    def write(self, outgoing: Outgoing) -> None:
        """Queues a block that it does not have. The tier is open."""
        self._writing.add(outgoing.block.key)
        self._queued_bytes += outgoing.size_bytes
        self._queue.put_nowait(outgoing)

    async def drained(self) -> None:
        """Waits until all that was queued is written, or given up."""
        await self._queue.join()

    async def _write_down(self) -> None:
        while True:
            batch = await self._next_batch()
            ends = dict.fromkeys((one.block.key for one in batch), Outcome.FAILED)
            try:
                ends |= await self._write(batch)
            except Exception:  # a fault of this program: what waits behind it must not wait for ever
                _log.exception("%s: %d blocks are not stored", self.name, len(batch))
                for outgoing in batch:
                    if not self.holds(outgoing.block.key, len(outgoing.views)):
                        self.book.remove(outgoing.block.key)
            finally:
                for outgoing in batch:
                    self._end(outgoing, ends[outgoing.block.key])
                    self._queue.task_done()

    def _end(self, outgoing: Outgoing, outcome: Outcome) -> None:
        self._writing.discard(outgoing.block.key)
        self._queued_bytes -= outgoing.size_bytes
        self.outcomes["write", outcome] += 1
        self.totals.store_bytes += outgoing.size_bytes if outcome is Outcome.DONE else 0
        outgoing.ended(outcome)

    async def _next_batch(self) -> list[Outgoing]:
        batch = [await self._queue.get()]
        size = batch[0].size_bytes
        while not self._queue.empty() and size < _BATCH_BYTES:
            batch.append(self._queue.get_nowait())
            size += batch[-1].size_bytes
        return batch

    async def _write(self, batch: Sequence[Outgoing]) -> dict[BlockHash, Outcome]:
        """Together: a tier gathers neighbours, and an object is written as a whole."""
        ends: dict[BlockHash, Outcome] = {}
        ready: list[_Encoded] = []
        for outgoing in batch:
            blobs = await self._coder.encode(outgoing)
            if blobs is None:
                ends[outgoing.block.key] = Outcome.CORRUPT
                _log.warning("%s: a block is not stored: it changed in memory", self.name)
            elif await self._take_room(outgoing.block, blobs):
                ready.append((outgoing, blobs))
            else:
                ends[outgoing.block.key] = Outcome.FULL
        return ends | await self._put(ready)

    async def _take_room(self, block: StoredBlock, blobs: Sequence[Blob]) -> bool:
        """In the book; the block is pinned there."""
        size = sum(_charge(len(blob.data)) for blob in blobs)
        if block.key in self.book:
            await self._forget([block.key])  # what is left of it: a part was lost
        self._most_parts = max(self._most_parts, len(blobs))
        victims = self.book.make_room(size, block.tenant)
        added = self.book.add(block.key, block.parent, size, block.tenant)
        self.book.pin([block.key])
        gone = [victim.key for victim in victims]
        self._strangers.difference_update(gone)
        self.held_changed(gone, False)
        await self._tier.remove(self._parts_of(gone))
        return added is Added.HELD

    async def _put(self, ready: Sequence[_Encoded]) -> dict[BlockHash, Outcome]:
        blobs, started = [blob for _, encoded in ready for blob in encoded], self._clock.now()
        try:
            results = await self._tier.write(blobs)
        finally:
            self.totals.store_seconds += self._clock.now() - started
            self.book.unpin([outgoing.block.key for outgoing, _ in ready])
        ends: dict[BlockHash, Outcome] = {}
        for outgoing, encoded in ready:
            mine, results = results[: len(encoded)], results[len(encoded) :]
            ends[outgoing.block.key] = await self._put_ended(outgoing.block.key, mine)
        return ends

    async def _put_ended(self, key: BlockHash, results: Sequence[BlobResult]) -> Outcome:
        failed = next((result for result in results if result.outcome is not Outcome.DONE), None)
        if failed is None:
            self.held_changed((key,), True)
            return Outcome.DONE
        _log.warning("%s: a block is not stored: %s", self.name, failed.reason)
        await self._forget([key])
        return failed.outcome

    # -- for operations

    def is_writing(self, key: BlockHash) -> bool:
        return key in self._writing

    async def read(self, key: BlockHash) -> StoredParts:
        """All parts of a block, decoded, in memory of their own. What is corrupt is not dropped."""
        names = list(takewhile(lambda name: self._tier.holds([name])[0], self._parts_of([key])))
        sizes = self._tier.sizes(names)
        targets = [Target(name, aligned(size)) for name, size in zip(names, sizes, strict=True)]
        results = await self._tier.read(targets)
        for result in results:
            self.outcomes["read", result.outcome] += 1
        failed = next((result for result in results if result.outcome is not Outcome.DONE), None)
        if failed or not names:
            return StoredParts(failed.outcome if failed else Outcome.MISSING, failed.reason if failed else "")
        return await self._coder.decode_all(targets, results)

    async def drop(self, keys: Sequence[BlockHash]) -> None:
        """They are gone from the book at once, and from the medium when this returns."""
        await self._forget(keys)

    # -- parts

    async def _forget(self, keys: Sequence[BlockHash]) -> None:
        for key in keys:
            self.book.remove(key)
            self._strangers.discard(key)
        self.held_changed(keys, False)
        await self._tier.remove(self._parts_of(keys))

    def _parts_of(self, keys: Sequence[BlockHash]) -> list[BlobKey]:
        return [part_key(key, part) for key in keys for part in range(self._most_parts)]


def _charge(size: int) -> int:
    """What a blob takes on a medium of pages, its head included."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES + ALIGNMENT_BYTES
