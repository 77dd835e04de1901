"""The copies of a worker on another host: those of `copier`, through the transfer engine.

A store writes a block's pieces into its slot and digests them here meanwhile. When all have arrived and the
slot is still its own, it writes the checksum beside it. A load reads the pieces, then the generation, and
digests what has arrived: it counts when both are those of the block that was meant.

Each transport is probed before its first use, and again before the use that follows a failure: the pattern of
the probe also proves that the arena is still there. A write that failed may still arrive in part: a slot of
another by then is found to be corrupt by whoever loads it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from llmserve.core.clock import Clock
from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.copier import MOVED, Copied, CopyOutcome, blocks_of
from llmserve.kvstore.dram.serving import ServedRoute
from llmserve.kvstore.dram.shape import DATA_REGION, FRONT_REGION, WORD_BYTES, ArenaDescription, ArenaShape
from llmserve.transfer.base import Batch, Int64Array, Region, Spans, Transport
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers, TransferEngine
from llmserve.transfer.engine.pair import Doubtful, Pair
from llmserve.transfer.spans import check_bounds

_log = logging.getLogger(__name__)
_WORDS = 4096  # read or written at once
# Longest time of a copy over one transport; less than a slot waits for a late writer (tier.py: quarantine).
_ATTEMPT_SECONDS = 20.0
_PROBES_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Blocks to copy between this worker's memory and the pool. blocks: where each lies here. batch: the
    pieces of all blocks. pieces: number of pieces of each."""

    slots: tuple[Slot, ...]
    blocks: tuple[Spans, ...]
    batch: Batch
    pieces: Int64Array

    @classmethod
    def of(cls, slots: Sequence[Slot], spans: Spans, shape: ArenaShape, lengths: Sequence[int]) -> "CopyJob":
        """lengths: of the worker's regions. Errors: TransferError for slots or pieces outside of memory, or
        that do not fit each other."""
        check_bounds(spans, lengths, "local")
        for slot in slots:
            if not 0 <= slot.offset <= slot.offset + slot.length_bytes <= shape.capacity_bytes:
                raise TransferError(f"kv pool: no such slot: {slot}")
        sizes = np.array([slot.length_bytes for slot in slots], np.int64)
        blocks = blocks_of(spans, sizes.tolist())
        pieces = np.array([len(block.lengths) for block in blocks], np.int64)
        shifts = np.array([slot.offset for slot in slots], np.int64) - (np.cumsum(sizes) - sizes)
        offsets = np.cumsum(spans.lengths) - spans.lengths + np.repeat(shifts, pieces)
        remote = Spans(np.full(len(offsets), DATA_REGION), offsets, spans.lengths)
        return cls(tuple(slots), tuple(blocks), Batch(spans, remote), pieces)

    def only(self, wanted: Sequence[bool]) -> "CopyJob":
        if all(wanted):
            return self
        mask = np.repeat(np.array(wanted, np.bool_), self.pieces)
        halves = (self.batch.local, self.batch.remote)
        local, remote = (Spans(h.regions[mask], h.offsets[mask], h.lengths[mask]) for h in halves)
        slots, blocks = tuple(compress(self.slots, wanted)), tuple(compress(self.blocks, wanted))
        return CopyJob(slots, blocks, Batch(local, remote), self.pieces[np.array(wanted, np.bool_)])


_Copy = Callable[[str, CopyJob], Awaitable[list[Copied]]]


@dataclass(slots=True)
class _Attempt:
    """Runs a copy over one transport after the other. corrupt: transport and outcome of the last copy that
    brought other bytes than the block's, while local memory still holds them."""

    pair: Pair
    copy: _Copy
    job: CopyJob
    copied: list[Copied] = field(default_factory=list)
    corrupt: tuple[str, list[Copied]] | None = None

    async def over(self, name: str) -> None:
        """Errors: TransferError; Doubtful for bytes that another transport may bring better."""
        earlier, self.corrupt = self.corrupt, None
        try:
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                copied = await self.copy(name, self.job)
        except TimeoutError:
            raise TransferError(f"too slow: not done within {_ATTEMPT_SECONDS:g} s") from None
        if any(one.outcome is CopyOutcome.CORRUPT for one in copied):
            self.corrupt = name, copied
            raise Doubtful("other bytes than the block's")
        if earlier:
            self.pair.failed(earlier[0], f"it brought other bytes than {name}")
        self.copied = copied


class RemotePool:
    """A PoolAccess (`access`). One thread at a time; a call blocks until its copies have ended, at most 20
    seconds for each transport."""

    def __init__(
        self,
        manager: str,
        described: ArenaDescription,
        regions: Sequence[Region],
        transports: Sequence[Transport],
        policy: TransferPolicy | None = None,
        clock: Clock | None = None,
        shared: SharedTransfers | None = None,
    ) -> None:
        """manager: name of the pool's KV manager. regions: the worker's memory, which outlives the pool.
        clock, shared: see TransferEngine. Owns the transports, also when it fails. Errors: TransferError when
        none of them reaches the pool."""
        self._shape = ArenaShape(described.capacity_bytes)
        self._scratch = np.zeros(_WORDS, np.int64)
        self._lengths = [region.length_bytes for region in regions]
        self._scratch_region = len(regions)
        mine = (*regions, Region(self._scratch.ctypes.data, self._scratch.nbytes))
        common = [one for one in transports if one.name in described.transports]
        for transport in transports:
            if transport not in common:
                transport.close()
        if not common:
            raise TransferError("kv pool: on another host, and no transport in common with this worker")
        self._engine = TransferEngine(common, mine, policy, clock, shared)
        try:
            routes = {one.name: ServedRoute.from_text(described.transports[one.name]) for one in common}
        except TransferError:
            self._engine.close()
            raise
        self._seconds = _PROBES_SECONDS + _ATTEMPT_SECONDS * len(common)
        self._pair: Pair = self._engine.call(self._made_pair(manager, routes))

    async def _made_pair(self, manager: str, routes: dict[str, ServedRoute]) -> Pair:
        descriptions = {name: route.description for name, route in routes.items()}
        return Pair(self._engine, manager, descriptions, next(iter(routes.values())).probe)

    def store(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """See PoolAccess."""
        return self._copied(self._store, slots, spans)

    def load(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        """See PoolAccess."""
        return self._copied(self._load, slots, spans)

    def close(self) -> None:
        """See PoolAccess."""
        with suppress(TransferError):  # closed before
            self._engine.post(lambda: self._pair.close("closed"))
        self._engine.close()

    def _copied(self, copy: _Copy, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        job = CopyJob.of(slots, spans, self._shape, self._lengths)
        try:
            return self._engine.call(self._over_any(copy, job), self._seconds)
        except TimeoutError as error:
            raise TransferError(f"kv pool: not done within {self._seconds:g} s") from error

    # -- on the engine's loop

    async def _over_any(self, copy: _Copy, job: CopyJob) -> list[Copied]:
        """Errors: TransferError when no transport does it; local memory may hold anything then."""
        await self._pair.probe_due(_nothing)
        if not self._pair.choice.works(self._engine.clock.now()):
            raise TransferError(f"kv pool: no transport reaches it: {self._out_of_use()}")
        attempt = _Attempt(self._pair, copy, job)
        try:
            await self._pair.over_any(attempt.over, [])
        except TransferError as error:
            if attempt.corrupt is None:
                raise TransferError(f"kv pool: no transport reaches it: {error.message}") from error
            return attempt.corrupt[1]
        return attempt.copied

    def _out_of_use(self) -> str:
        rows = self._pair.choice.rows("", self._engine.clock.now())
        return "; ".join(f"{row.transport}: {row.reason}" for row in rows)

    async def _store(self, name: str, job: CopyJob) -> list[Copied]:
        mine = await self._current(name, job.slots)
        kept = job.only(mine)
        if not kept.slots:
            return [MOVED] * len(mine)
        _, checksums = await asyncio.gather(  # digests what is sent, while it is sent
            self._pair.write(name, kept.batch, _nothing, set()), asyncio.to_thread(self._digests, kept.blocks)
        )
        still = await self._current(name, kept.slots)
        await self._note(name, list(compress(kept.slots, still)), list(compress(checksums, still)))
        ended = zip(checksums, still, strict=True)
        return [Copied.stored(*next(ended)) if is_mine else MOVED for is_mine in mine]

    async def _load(self, name: str, job: CopyJob) -> list[Copied]:
        await self._pair.read(name, job.batch, _nothing)
        current = await self._current(name, job.slots)
        checksums = await asyncio.to_thread(self._digests, job.blocks)
        blocks = zip(job.slots, checksums, current, strict=True)
        return [Copied.loaded(*block) for block in blocks]

    def _digests(self, blocks: Sequence[Spans]) -> list[int]:
        """xxh3 of each block. Errors: TransferError."""
        return [int(self._engine.digest(block), 16) for block in blocks]

    # -- words of slots

    async def _current(self, name: str, slots: Sequence[Slot]) -> list[bool]:
        """Whether this use of each slot has not ended (AttachedArena.is_current)."""
        found: list[bool] = []
        for first in range(0, len(slots), _WORDS):
            some = slots[first : first + _WORDS]
            await self._pair.read(name, self._words(some, self._shape.words_offset), _nothing)
            words = self._scratch[: len(some)].tolist()
            found += [0 != word == slot.generation for word, slot in zip(words, some, strict=True)]
        return found

    async def _note(self, name: str, slots: Sequence[Slot], checksums: Sequence[int]) -> None:
        """See AttachedArena.note_checksum."""
        for first in range(0, len(slots), _WORDS):
            some = slots[first : first + _WORDS]
            self._scratch.view(np.uint64)[: len(some)] = checksums[first : first + _WORDS]
            await self._pair.write(name, self._words(some, self._shape.checksums_offset), _nothing, set())

    def _words(self, slots: Sequence[Slot], offset: int) -> Batch:
        """A word of each slot's first page and the scratch memory. offset: of all such words in the front."""
        count = len(slots)
        lengths = np.full(count, WORD_BYTES, np.int64)
        pages = np.array([slot.page for slot in slots], np.int64)
        here = Spans(np.full(count, self._scratch_region), np.arange(count) * WORD_BYTES, lengths)
        return Batch(here, Spans(np.full(count, FRONT_REGION), offset + pages * WORD_BYTES, lengths))


async def _nothing() -> None:
    """Checksums compare the blocks; words are compared by their values."""
