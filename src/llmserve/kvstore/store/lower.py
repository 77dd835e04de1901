"""One tier below DRAM, with its book: what it holds, what is written down, and what is brought up.

Blocks come from the pool and go back to it, encoded and decoded on a thread of this tier. What goes down
waits in a queue, whose bytes are bounded by the caller (`eviction.writing`); what comes up does not wait for
it. Trouble of the medium is a miss for whoever asked, and is counted and told; nothing here raises for it.
"""

import asyncio
import logging
import mmap
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count

import xxhash

from llmserve.core.clock import Clock
from llmserve.core.errors import BlockDamaged, BlockUnreadable
from llmserve.core.ids import BlockHash
from llmserve.core.tasks import TaskOwner
from llmserve.core.tiers import TierTotals
from llmserve.kvstore.eviction import Added, LowerTier, TierBook
from llmserve.kvstore.formats import BlockCodec, decoded_bytes
from llmserve.kvstore.store.dram import StoredBlock
from llmserve.kvstore.store.words import part_key
from llmserve.kvstore.tiers.base import (
    ALIGNMENT_BYTES,
    Blob,
    BlobKey,
    Outcome,
    ReadResult,
    Target,
    Tier,
    Usage,
)

_log = logging.getLogger(__name__)
_BATCH_BYTES = 64 << 20
_FIRST_GUESS_BYTES_PER_SECOND = 500e6
_LEARNING = 0.3  # the weight of the last figure

MakeCodec = Callable[[int], BlockCodec]  # for parts of so many bytes


@dataclass(frozen=True, slots=True)
class Incoming:
    """A part of a block to bring up, and where to."""

    key: BlobKey
    view: memoryview


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A block to write down. views: of its parts, which the caller holds until `let_go` is called."""

    block: StoredBlock
    views: tuple[memoryview, ...]
    let_go: Callable[[], object]

    @property
    def size_bytes(self) -> int:
        return sum(self.block.part_bytes)


@dataclass(frozen=True, slots=True)
class StoredParts:
    """Of a block; none unless DONE."""

    outcome: Outcome = Outcome.DONE
    reason: str = ""
    parts: tuple[memoryview, ...] = ()


class LowerStore:
    """One event loop. Life: open -> aclose (idempotent; what is queued to be written is given up)."""

    def __init__(
        self,
        tier: Tier,
        book: TierBook,
        make_codec: MakeCodec,
        clock: Clock,
        busy_bytes: int = 256 << 20,
        name: str = "",
    ) -> None:
        """name: of the storage class; without one it is that of its kind."""
        self.name, self.kind = name or tier.name, tier.name
        self.book = book
        self.totals = TierTotals()
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()  # by operation
        self._tier, self._make_codec, self._clock = tier, make_codec, clock
        self._busy_bytes, self._queued_bytes = busy_bytes, 0
        self._codecs: dict[int, BlockCodec] = {}
        self._thread = ThreadPoolExecutor(1, f"kv-{tier.name}")
        self._queue: asyncio.Queue[Outgoing] = asyncio.Queue()
        self._writing: set[BlockHash] = set()
        self._tasks = TaskOwner(f"kv-{tier.name}")
        self._bytes_per_second = _FIRST_GUESS_BYTES_PER_SECOND

    async def open(self) -> None:
        """Errors: StartFailed."""
        await self._tier.open()
        self._tasks.spawn("write", self._write_down(), fatal=True)

    async def aclose(self) -> None:
        await self._tasks.aclose()
        while not self._queue.empty():
            self._queue.get_nowait().let_go()
        self._thread.shutdown()
        await self._tier.aclose()

    # -- what is there

    def holds(self, key: BlockHash, parts: int) -> bool:
        return all(self._tier.holds([part_key(key, part) for part in range(parts)]))

    def load_seconds(self, size_bytes: int) -> float:
        """What so many bytes of blocks have taken lately."""
        return size_bytes / self._bytes_per_second

    def state(self) -> LowerTier:
        usage = self._tier.usage()
        has_room = self.book.used_bytes + self._queued_bytes < usage.capacity_bytes
        return LowerTier(has_room, self._queued_bytes, self._busy_bytes)

    # -- up

    async def bring_up(self, wanted: Sequence[Incoming]) -> list[int | None]:
        """Fills the views; the checksum (xxh3) of each, or None for a miss, whose view holds garbage."""
        started = self._clock.now()
        sizes = self._tier.sizes([one.key for one in wanted])
        buffers = [_room(one.view, size) for one, size in zip(wanted, sizes, strict=True)]
        targets = [Target(one.key, buffer) for one, buffer in zip(wanted, buffers, strict=True)]
        results = await self._tier.read(targets)
        sums: list[int | None] = []
        for one, target, result in zip(wanted, targets, results, strict=True):
            self.outcomes["read", result.outcome] += 1
            if result.outcome is not Outcome.DONE:
                _log.warning("%s: a block is not read: %s", self.name, result.reason)
                sums.append(None)
                continue
            payload = target.buffer[: result.length_bytes]
            sums.append(await self._decoded(one, result.header, payload))
        self._learn(sum(len(one.view) for one in wanted), self._clock.now() - started)
        self.totals.load_bytes += sum(
            len(one.view) for one, checksum in zip(wanted, sums, strict=True) if checksum is not None
        )
        self.totals.load_seconds += self._clock.now() - started
        return sums

    async def _decoded(self, one: Incoming, header: bytes, payload: memoryview) -> int | None:
        run = asyncio.get_running_loop().run_in_executor
        try:
            return await run(self._thread, partial(self._decode, one, header, payload))
        except BlockUnreadable as error:
            self.outcomes["read", Outcome.CORRUPT] += 1
            _log.warning("%s: a block cannot be decoded: %s", self.name, error.message)
            return None

    def _decode(self, one: Incoming, header: bytes, payload: memoryview) -> int:
        if payload.obj is one.view.obj and len(payload) != len(one.view):
            payload = memoryview(bytes(payload))
        self._codec(len(one.view)).decode(one.key, header, payload, one.view)
        return xxhash.xxh3_64_intdigest(one.view)

    def _learn(self, size_bytes: int, seconds: float) -> None:
        if size_bytes and seconds > 0:
            rate = size_bytes / seconds
            self._bytes_per_second += _LEARNING * (rate - self._bytes_per_second)

    # -- down

    def is_writing(self, key: BlockHash) -> bool:
        return key in self._writing

    def write(self, outgoing: Outgoing) -> None:
        """Queues a block, unless it is there or on its way."""
        key = outgoing.block.key
        if key in self._writing or self.holds(key, len(outgoing.views)):
            outgoing.let_go()
            return
        self._writing.add(key)
        self._queued_bytes += outgoing.size_bytes
        self._queue.put_nowait(outgoing)

    async def drained(self) -> None:
        """Waits until all that was queued is written, or given up."""
        await self._queue.join()

    async def _write_down(self) -> None:
        while True:
            batch = await self._next_batch()
            try:
                await self._write(batch)
            finally:
                for outgoing in batch:
                    self._writing.discard(outgoing.block.key)
                    self._queued_bytes -= outgoing.size_bytes
                    outgoing.let_go()
                    self._queue.task_done()

    async def _next_batch(self) -> list[Outgoing]:
        batch = [await self._queue.get()]
        size = batch[0].size_bytes
        while not self._queue.empty() and size < _BATCH_BYTES:
            batch.append(self._queue.get_nowait())
            size += batch[-1].size_bytes
        return batch

    async def _write(self, batch: Sequence[Outgoing]) -> None:
        run = asyncio.get_running_loop().run_in_executor
        for outgoing in batch:
            blobs = await run(self._thread, partial(self._encode, outgoing))
            if await self._has_room(outgoing, blobs):
                await self._put(outgoing.block, blobs)

    def _encode(self, outgoing: Outgoing) -> list[Blob]:
        blobs = []
        for part, view in enumerate(outgoing.views):
            key, codec = part_key(outgoing.block.key, part), self._codec(len(view))
            encoded = codec.encode(key, view, _aligned(codec.bound_bytes))
            blobs.append(Blob(key, encoded.header, encoded.payload))
        return blobs

    async def _has_room(self, outgoing: Outgoing, blobs: Sequence[Blob]) -> bool:
        block, size = outgoing.block, sum(len(blob.data) for blob in blobs)
        victims = self.book.make_room(size, block.tenant)
        if victims:
            parts = range(len(outgoing.views))
            await self._tier.remove([part_key(victim.key, part) for victim in victims for part in parts])
        return self.book.add(block.key, block.parent, size, block.tenant) is Added.HELD

    async def _put(self, block: StoredBlock, blobs: Sequence[Blob]) -> None:
        self.book.pin([block.key])
        started = self._clock.now()
        results = await self._tier.write(blobs)
        self.totals.store_seconds += self._clock.now() - started
        self.book.unpin([block.key])
        for result in results:
            self.outcomes["write", result.outcome] += 1
        failed = next((result for result in results if result.outcome is not Outcome.DONE), None)
        if failed:
            _log.warning("%s: a block is not stored: %s", self.name, failed.reason)
            self.book.remove(block.key)
            await self._tier.remove([blob.key for blob in blobs])
        else:
            self.totals.store_bytes += sum(block.part_bytes)

    # -- for operations

    def parts_of(self, key: BlockHash) -> int:
        """How many parts of it are there, from the first on; 0: it is not."""
        return next(part for part in count() if not self.holds_part(key, part))

    def holds_part(self, key: BlockHash, part: int) -> bool:
        return self._tier.holds([part_key(key, part)])[0]

    def usage(self) -> Usage:
        return self._tier.usage()

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    async def read(self, key: BlockHash) -> StoredParts:
        """All parts of a block, decoded, in memory of their own. What is corrupt is not dropped."""
        names = [part_key(key, part) for part in range(self.parts_of(key))]
        targets = [
            Target(name, _aligned(size)) for name, size in zip(names, self._tier.sizes(names), strict=True)
        ]
        results = await self._tier.read(targets)
        for result in results:
            self.outcomes["read", result.outcome] += 1
        failed = next((result for result in results if result.outcome is not Outcome.DONE), None)
        if failed or not names:
            return StoredParts(failed.outcome if failed else Outcome.MISSING, failed.reason if failed else "")
        run = asyncio.get_running_loop().run_in_executor
        try:
            return StoredParts(parts=await run(self._thread, partial(self._decode_all, targets, results)))
        except BlockDamaged as error:
            return StoredParts(Outcome.CORRUPT, error.message)
        except BlockUnreadable as error:
            return StoredParts(Outcome.FAILED, error.message)

    def _decode_all(self, targets: Sequence[Target], results: Sequence[ReadResult]) -> tuple[memoryview, ...]:
        parts = []
        for target, result in zip(targets, results, strict=True):
            size = decoded_bytes(result.header)
            parts.append(_aligned(size)[:size])
            payload = target.buffer[: result.length_bytes]
            self._codec(size).decode(target.key, result.header, payload, parts[-1])
        return tuple(parts)

    async def drop(self, keys: Sequence[BlockHash]) -> None:
        """They are gone from the book at once, and from the medium when this returns."""
        names = [part_key(key, part) for key in keys for part in range(self.parts_of(key))]
        for key in keys:
            self.book.remove(key)
        await self._tier.remove(names)

    def _codec(self, part_bytes: int) -> BlockCodec:
        if part_bytes not in self._codecs:
            self._codecs[part_bytes] = self._make_codec(part_bytes)
        return self._codecs[part_bytes]


def _room(view: memoryview, size: int) -> memoryview:
    """Where a blob of this size is read to: in place, if it fits."""
    return view if size <= len(view) else _aligned(size)


def _aligned(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES))
