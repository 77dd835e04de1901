"""One tier below DRAM: what it holds, what is written down to it, and what is brought up from it.

Blocks come from the arena and go back to it; a thread of this tier encodes and decodes them. Blocks that go
down wait in a queue (`write_queue`); blocks that come up do not wait for it. An error of the medium is a miss
for whoever asked; it is counted and logged, and nothing here raises for it.

A read returns what was written, or a miss. The tier forgets lost and damaged blocks, here and on the medium,
so that they can be stored again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from llmserve.core.clock import Clock
from llmserve.core.errors import BlockUnreadable, StartFailed, Unavailable
from llmserve.core.ids import BlockHash, TenantId
from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.blocks import HeldChanged, StoredBlock, block_of, nobody_asks
from llmserve.kvstore.eviction import LowerTier, TierIndex, WriteMode
from llmserve.kvstore.store.coding import Coder, Incoming, MakeCodec, Outgoing, StoredParts, aligned, room_for
from llmserve.kvstore.store.contents import TierContents
from llmserve.kvstore.store.medium_log import MediumLog
from llmserve.kvstore.store.write_queue import WriteQueue
from llmserve.kvstore.tiers.base import (
    BlobKey,
    ReadTarget,
    Tier,
    TierOutcome,
)
from llmserve.rpc.client import Backoff

_log = logging.getLogger(__name__)
_FIRST_GUESS_BYTES_PER_SECOND = 500e6
# One part in so many is kept for proven blocks: else new blocks would push out old ones, and each other.
_KEPT_FOR_PROVEN = 16
_LEARNING = 0.3  # the weight of the last figure
_OPEN_AGAIN_SECONDS = (1.0, 60.0)


@dataclass(frozen=True, slots=True)
class LowerSettings:
    """busy_bytes: see `eviction.writing`; blocks going down hold at most four times as much of DRAM.
    opens_later: a medium that cannot be opened is tried again and again, and is a miss until then."""

    write_mode: WriteMode = WriteMode.AUTO
    busy_bytes: int = 256 << 20
    opens_later: bool = False


class LowerStore:
    """One event loop. Life: open -> aclose (idempotent; blocks that wait to be written are given up).

    closed: reason why it is not open; empty when it is."""

    def __init__(
        self,
        tier: Tier,
        index: TierIndex,
        make_codec: MakeCodec,
        clock: Clock,
        settings: LowerSettings | None = None,
        name: str = "",
    ) -> None:
        self.name, self.kind = name or tier.name, tier.name
        self.index = index
        self._medium = MediumLog(self.name)
        self.totals, self.outcomes = self._medium.totals, self._medium.outcomes
        self.held_changed: HeldChanged = nobody_asks
        self.settings = settings or LowerSettings()
        self.closed = "not opened yet"
        self._tier, self._clock = tier, clock
        self._coder = Coder(make_codec, f"kv-{self.name}")
        self._contents = TierContents(tier, index, lambda keys, held: self.held_changed(keys, held))
        self._queue = WriteQueue(tier, self._contents, self._coder, clock, self._medium)
        self._tasks = TaskOwner(f"kv-{self.name}")
        self._bytes_per_second = _FIRST_GUESS_BYTES_PER_SECOND

    # -- life

    async def open(self) -> None:
        """Errors: StartFailed, unless it opens later."""
        if self.settings.opens_later:
            self._tasks.spawn("open", self._open_patiently())
        else:
            await self._open()

    async def aclose(self) -> None:
        self.closed = "closed"
        await self._tasks.aclose()
        self._queue.give_up()
        self._coder.close()
        await self._tier.aclose()

    @property
    def is_open(self) -> bool:
        return not self.closed

    @property
    def error(self) -> str:
        """What is wrong with the tier now, as text; empty when nothing is."""
        return f"not used now: {self.closed}" if self.closed else self._medium.error

    async def _open_patiently(self) -> None:
        backoff = Backoff(*_OPEN_AGAIN_SECONDS)
        while not self.is_open:
            try:
                await self._open()
            except Exception as error:
                self._note_closed(error)
                await backoff.pause()

    def _note_closed(self, error: Exception) -> None:
        """Each reason is logged once; one that nobody foresaw, with its trace."""
        if str(error) != self.closed:
            trace = None if isinstance(error, StartFailed) else error
            _log.warning("%s: not used until it can be opened: %s", self.name, error, exc_info=trace)
        self.closed = str(error) or repr(error)

    async def _open(self) -> None:
        await self._tier.open()
        found = await self._contents.take()
        self.closed = ""
        self._tasks.spawn("write", self._queue.run())
        _log.info("%s: open, %d blocks found, %r", self.name, found, self.index)

    # -- what is there

    @property
    def queued_bytes(self) -> int:
        """Bytes of DRAM that are held by blocks going down."""
        return self._queue.bytes

    def holds(self, key: BlockHash, parts: int) -> bool:
        return self.is_open and self._contents.holds(key, parts)

    def load_seconds(self, size_bytes: int) -> float:
        """Time that a load of so many bytes has taken lately."""
        return size_bytes / self._bytes_per_second

    def state(self) -> LowerTier:
        """Counts a tier as full a little early: some room is kept for proven blocks."""
        most = self.index.capacity_bytes - self.index.capacity_bytes // _KEPT_FOR_PROVEN
        has_room = self.index.used_bytes + self.queued_bytes < most
        return LowerTier(has_room, self.queued_bytes, self.settings.busy_bytes)

    def adopt(self, keys: Sequence[BlockHash], tenant: TenantId) -> None:
        """See TierContents.adopt."""
        self._contents.adopt(keys, tenant)

    # -- up

    async def bring_up(self, wanted: Sequence[Incoming]) -> list[int | None]:
        """Fills the views. Returns the checksum (xxh3) of each, or None for a miss, whose view holds garbage.
        A call that is cancelled ends when it no longer touches them."""
        started = self._clock.now()
        sizes = self._tier.sizes([one.key for one in wanted])
        buffers = [room_for(one.view, size) for one, size in zip(wanted, sizes, strict=True)]
        targets = [ReadTarget(one.key, buffer) for one, buffer in zip(wanted, buffers, strict=True)]
        results = await self._tier.read(targets)
        sums: list[int | None] = []
        for one, target, result in zip(wanted, targets, results, strict=True):
            if result.outcome is TierOutcome.DONE:
                payload = target.buffer[: result.length_bytes]
                sums.append(await self._decoded(one, result.header, payload))
            else:
                sums.append(None)
                await self._not_read(one.key, result.outcome, result.reason)
        loaded = sum(len(one.view) for one, found in zip(wanted, sums, strict=True) if found is not None)
        self._learn(loaded, self._clock.now() - started)
        self.totals.load_bytes += loaded
        self.totals.load_seconds += self._clock.now() - started
        return sums

    async def _decoded(self, one: Incoming, header: bytes, payload: memoryview) -> int | None:
        try:
            checksum = await self._coder.decode(one, header, payload)
        except BlockUnreadable as error:
            await self._not_read(one.key, TierOutcome.CORRUPT, error.message)
            return None
        self.outcomes["read", TierOutcome.DONE] += 1
        self._medium.note("read", TierOutcome.DONE, "")
        return checksum

    async def _not_read(self, key: BlobKey, outcome: TierOutcome, reason: str) -> None:
        self.outcomes["read", outcome] += 1
        self._medium.note("read", outcome, reason)
        if outcome in (TierOutcome.MISSING, TierOutcome.CORRUPT):
            await self._contents.forget([block_of(key)[0]])

    def _learn(self, size_bytes: int, seconds: float) -> None:
        if size_bytes and seconds > 0:
            rate = size_bytes / seconds
            self._bytes_per_second += _LEARNING * (rate - self._bytes_per_second)

    # -- down

    def has(self, block: StoredBlock) -> bool:
        """The block is stored here, or on its way."""
        return block.key in self._queue or self.holds(block.key, len(block.part_bytes))

    def write(self, outgoing: Outgoing) -> None:
        """Queues a block that the tier does not have. The tier is open."""
        self._queue.put(outgoing)

    async def drained(self) -> None:
        """Waits until all queued blocks are written or given up."""
        await self._queue.drained()

    # -- for operations

    def is_writing(self, key: BlockHash) -> bool:
        return key in self._queue

    def writing(self) -> list[BlockHash]:
        """The blocks that wait to be written, or are being written."""
        return self._queue.keys()

    async def read(self, key: BlockHash) -> StoredParts:
        """All parts of a block, decoded, in memory of their own. A corrupt block is not dropped."""
        names = list(takewhile(lambda name: self._tier.holds([name])[0], self._contents.names([key])))
        sizes = self._tier.sizes(names)
        targets = [ReadTarget(name, aligned(size)) for name, size in zip(names, sizes, strict=True)]
        results = await self._tier.read(targets)
        for result in results:
            self.outcomes["read", result.outcome] += 1
        failed = next((result for result in results if result.outcome is not TierOutcome.DONE), None)
        if failed or not names:
            return StoredParts(
                failed.outcome if failed else TierOutcome.MISSING, failed.reason if failed else ""
            )
        return await self._coder.decode_all(targets, results)

    async def drop(self, keys: Sequence[BlockHash]) -> None:
        """See TierContents.forget."""
        await self._contents.forget(keys)

    async def settle_removals(self) -> None:
        """Returns when no later process finds what was removed before. Errors: Unavailable, with the reason,
        while the medium does not take that down."""
        if not self.is_open:
            raise Unavailable(f"storage class '{self.name}' is not used now: {self.closed}")
        result = await self._tier.settle_removals()
        if result.outcome is not TierOutcome.DONE:
            raise Unavailable(f"storage class '{self.name}' does not note what was removed: {result.reason}")
