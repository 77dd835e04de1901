"""The requests of workers, over DRAM and the tiers below it. One event loop."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf

from llmserve.core.ids import BlockHash, LeaseId, TenantId
from llmserve.core.tiers import EvictReason
from llmserve.kvstore.eviction import (
    NOBODY,
    Admission,
    BlockAt,
    PromotionLimits,
    Victim,
    WriteMode,
    WriteStep,
    on_evicted,
    on_stored,
    promotions,
)
from llmserve.kvstore.leases import LeaseAnswer
from llmserve.kvstore.pool.slot import CommitOutcome, PoolUser, ReserveOutcome, Slot
from llmserve.kvstore.store.coding import Incoming, Outgoing
from llmserve.kvstore.store.dram import DramTier
from llmserve.kvstore.store.lower import LowerStore
from llmserve.kvstore.store.words import (
    NO_LEASE,
    BlockSlots,
    PartFill,
    Prepared,
    Prompt,
    StoredBlock,
    part_key,
)
from llmserve.kvstore.tiers.base import Outcome

_log = logging.getLogger(__name__)
LEASE_SECONDS = 30.0
ROOM_WAIT_SECONDS = 0.5
_SELF = PoolUser("kvmanager")
_NO_ROOM = (ReserveOutcome.FULL, ReserveOutcome.TOO_LARGE)

_Reserved = tuple[StoredBlock, tuple[Slot, ...]]
View = Callable[[int, int], memoryview]  # offset and length in the pool


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """lease_seconds: of loads and of reservations; a worker renews what takes longer. room_wait_seconds:
    how long what comes up waits for memory that is held for what goes down. Nothing else waits.
    ahead_bytes: of DRAM, kept free where there are tiers below: what leaves is written down before somebody
    needs its memory."""

    lease_seconds: float = LEASE_SECONDS
    room_wait_seconds: float = ROOM_WAIT_SECONDS
    ahead_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Pinned:
    """A block in the pool while it goes down. checksums: of its parts."""

    lease_id: LeaseId
    block: StoredBlock
    views: tuple[memoryview, ...]
    checksums: tuple[int, ...]
    proven: bool


class BlockStore:
    """lower: the tiers below DRAM, fastest first. view: of the pool's memory. Life: open -> aclose."""

    def __init__(
        self,
        dram: DramTier,
        lower: Sequence[LowerStore],
        view: View,
        admission: Admission,
        settings: StoreSettings | None = None,
    ) -> None:
        self.dram, self.lower = dram, tuple(lower)
        self._view, self._admission = view, admission
        self._settings = settings or StoreSettings()
        self.saved_prefill_seconds = 0.0  # of prompts that told what a block costs
        self._coming: dict[BlockHash, asyncio.Future[None]] = {}  # blocks on their way up
        self._behind: dict[str, dict[BlockHash, None]] = {tier.name: {} for tier in lower}
        self._written = asyncio.Event()  # something went down, and its memory is free

    async def open(self) -> None:
        """Errors: StartFailed."""
        for tier in self.lower:
            await tier.open()

    async def aclose(self) -> None:
        for tier in self.lower:
            await tier.aclose()

    # -- what workers ask

    async def prepare(self, prompt: Prompt) -> Prepared:
        """Returns when what is brought up for it is there, or is known not to come."""
        if prompt.load or not prompt.have_blocks:  # not when it asks once more, for what it has generated
            self._observe(prompt)
        run = self._stored_run(prompt) if prompt.load else 0
        end = prompt.have_blocks + run
        sources = [self._source(prompt, key) for key in prompt.keys[prompt.have_blocks : end]]
        held = self.dram.book.pin(prompt.keys[:end])  # it stays while room is made for the rest
        try:
            await self._bring_up(prompt, prompt.keys[prompt.have_blocks : end], held)
            lease_id, loads = self._lease(prompt, prompt.keys[prompt.have_blocks : end])
            self._count_hits(prompt, sources[: len(loads)])
            stores = self._reserve(prompt, prompt.have_blocks + len(loads)) if prompt.store else ()
        finally:
            self.dram.book.unpin(held)
        if self.lower and self._settings.ahead_bytes:
            self._make_room(self._settings.ahead_bytes, NOBODY)
        return Prepared(lease_id, loads, stores)

    async def prefetch(self, prompt: Prompt, wait_seconds: float) -> int:
        """What of the first blocks of a waiting prompt lies below DRAM comes up: as much as can in that time
        and as there is free room for. Nothing goes for it, is leased, or counts as used. How many came."""
        run = prompt.keys[: self._stored_run(prompt)]
        free_bytes = self.dram.book.capacity_bytes - self.dram.book.used_bytes
        limits = PromotionLimits(wait_seconds, compute_seconds=0.0, room_bytes=free_bytes)
        chosen = set(promotions([self._place(prompt, key) for key in run], limits))
        for tier in self.lower:
            await self._fill_from(tier, self._reserve_free(tier, prompt, chosen))
        return sum(map(self.dram.holds, chosen))

    def commit(self, fills: Sequence[PartFill]) -> list[CommitOutcome]:
        return [self._commit(fill) for fill in fills]

    def abort(self, user: PoolUser, keys: Sequence[BlockHash]) -> None:
        """Their writer has stopped writing. What another writes is left to it."""
        for key in keys:
            if self.dram.writer(key) == user:
                self.dram.abort(key)

    def renew(self, lease_id: LeaseId) -> LeaseAnswer:
        return self.dram.renew(lease_id, self._settings.lease_seconds)

    def release(self, lease_id: LeaseId) -> LeaseAnswer:
        return self.dram.release(lease_id)

    def corrupt(self, key: BlockHash) -> None:
        """A reader found other bytes in DRAM than were written."""
        self.dram.book.evictions[EvictReason.CORRUPT] += key in self.dram.book
        self.dram.drop(key)

    def forget(self, user: PoolUser) -> None:
        self.dram.forget(user)

    # -- finding

    def _observe(self, prompt: Prompt) -> None:
        proven = prompt.keys[: self._admission.observe(prompt.keys)]
        for tier in self.lower:
            tier.adopt(prompt.keys, prompt.tenant)
        new = [key for key in proven if self.dram.holds(key) and not self.dram.book.is_proven(key)]
        for book in (self.dram.book, *(tier.book for tier in self.lower)):
            book.touch(prompt.keys)
            book.prove(proven)
        for key in new:
            self._stored(self.dram.block(key))

    def _stored_run(self, prompt: Prompt) -> int:
        """How many blocks after those it has are stored somewhere, without a gap."""
        wanted, parts = prompt.keys[prompt.have_blocks :], len(prompt.part_bytes)
        missing = (at for at, key in enumerate(wanted) if not self._is_stored(key, parts))
        return next(missing, len(wanted))

    def _is_stored(self, key: BlockHash, parts: int) -> bool:
        return self.dram.holds(key) or self._below(key, parts) is not None

    def _below(self, key: BlockHash, parts: int) -> LowerStore | None:
        return next((tier for tier in self.lower if tier.holds(key, parts)), None)

    def _source(self, prompt: Prompt, key: BlockHash) -> DramTier | LowerStore:
        """The tier that has a stored block, as of now."""
        below = None if self.dram.holds(key) else self._below(key, len(prompt.part_bytes))
        return below or self.dram

    def _count_hits(self, prompt: Prompt, sources: Sequence[DramTier | LowerStore]) -> None:
        for source in sources:
            source.totals.hit_blocks += 1
            source.totals.hit_tokens += prompt.block_tokens
        self.dram.totals.load_bytes += len(sources) * sum(prompt.part_bytes)
        if prompt.compute_seconds < inf:
            self.saved_prefill_seconds += len(sources) * prompt.compute_seconds

    # -- up

    async def _bring_up(self, prompt: Prompt, run: Sequence[BlockHash], held: list[BlockHash]) -> None:
        """What of the run is not in DRAM, as far as that is faster than to compute it. What came is pinned
        in the book, and in `held`."""
        await self._join(run, held)
        chosen = set(promotions([self._place(prompt, key) for key in run], self._limits(prompt)))
        for tier in self.lower:
            keys = [key for key in run if key in chosen and self._below(key, len(prompt.part_bytes)) is tier]
            await self._bring_up_from(tier, prompt, keys, held)

    def _place(self, prompt: Prompt, key: BlockHash) -> BlockAt:
        size = sum(prompt.part_bytes)
        tier = None if self.dram.holds(key) else self._below(key, len(prompt.part_bytes))
        return BlockAt(key, size, tier.load_seconds(size) if tier else 0.0)

    def _limits(self, prompt: Prompt) -> PromotionLimits:
        return PromotionLimits(0.0, prompt.compute_seconds, self.dram.book.capacity_bytes)

    async def _bring_up_from(
        self, tier: LowerStore, prompt: Prompt, keys: Sequence[BlockHash], held: list[BlockHash]
    ) -> None:
        """As far as there is room, or comes to be in time."""
        chosen = set(keys)
        left = [_block(prompt, at) for at, key in enumerate(prompt.keys) if key in chosen]
        gives_up_at = asyncio.get_running_loop().time() + self._settings.room_wait_seconds
        while left:
            await self._join([block.key for block in left], held)
            ours, left = self._reserve_blocks(_SELF, prompt, left)
            if ours:
                await self._fill_from(tier, ours)
                held += self.dram.book.pin(block.key for block, _ in ours)
            if left and not await self._more_room(gives_up_at):
                return

    async def _join(self, keys: Sequence[BlockHash], held: list[BlockHash]) -> None:
        """Waits for those of the blocks that another prompt brings up."""
        joined = [key for key in keys if key in self._coming]
        if joined:
            await asyncio.wait({self._coming[key] for key in joined})
            held += self.dram.book.pin(joined)

    async def _fill_from(self, tier: LowerStore, ours: Sequence[_Reserved]) -> None:
        done = asyncio.get_running_loop().create_future()
        self._coming |= dict.fromkeys((block.key for block, _ in ours), done)
        try:
            parts = [(block, part, slot) for block, slots in ours for part, slot in enumerate(slots)]
            sums = await tier.bring_up(
                [
                    Incoming(part_key(block.key, part), self._view_of(slot), block.shape(part))
                    for block, part, slot in parts
                ]
            )
            for (block, part, slot), checksum in zip(parts, sums, strict=True):
                if checksum is not None:
                    self.dram.commit(PartFill(block.key, part, slot.generation, checksum))
        finally:
            for block, _ in ours:
                self._coming.pop(block.key)
                self.dram.abort(block.key)  # what was not committed
            done.set_result(None)

    async def _more_room(self, gives_up_at: float) -> bool:
        """Waits until memory came back from what goes down; not where nothing does."""
        if not any(tier.queued_bytes for tier in self.lower):
            return False
        self._written.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(gives_up_at):
                await self._written.wait()
                return True
        return False

    # -- answers

    def _lease(self, prompt: Prompt, run: Sequence[BlockHash]) -> tuple[LeaseId, tuple[BlockSlots, ...]]:
        keys = run[: self.dram.leading(run)]
        if not keys:
            return NO_LEASE, ()
        seconds, parts = self._settings.lease_seconds, len(prompt.part_bytes)
        lease_id, slots = self.dram.lease(prompt.user, keys, parts, seconds)
        first = prompt.have_blocks
        return lease_id, tuple(BlockSlots(first + at, one) for at, one in enumerate(slots))

    def _reserve(self, prompt: Prompt, first: int) -> tuple[BlockSlots, ...]:
        """For the blocks that will be computed, unless they are in DRAM. What is below and was not brought up
        is computed, too: here it is at hand the next time."""
        indexes = [at for at in range(first, len(prompt.keys)) if not self.dram.holds(prompt.keys[at])]
        blocks = {prompt.keys[at]: at for at in indexes}
        wanted = [_block(prompt, at) for at in indexes]
        ours, _ = self._reserve_blocks(prompt.user, prompt, wanted)
        return tuple(BlockSlots(blocks[block.key], slots) for block, slots in ours)

    def _reserve_blocks(
        self, user: PoolUser, prompt: Prompt, blocks: Sequence[StoredBlock]
    ) -> tuple[list[_Reserved], list[StoredBlock]]:
        """As many of the first as there is room for, and those for which there is none; those that another
        writes are left out."""
        ours: list[_Reserved] = []
        if blocks:
            self._make_room(self.dram.charge(prompt.part_bytes) * len(blocks), prompt.tenant)
        for at, block in enumerate(blocks):
            outcome, slots = self.dram.reserve(user, block, self._settings.lease_seconds)
            if outcome is ReserveOutcome.RESERVED:
                ours.append((block, slots))
            elif outcome in _NO_ROOM:
                return ours, list(blocks[at:])
        return ours, []

    def _reserve_free(self, tier: LowerStore, prompt: Prompt, chosen: set[BlockHash]) -> list[_Reserved]:
        """Of the chosen blocks those that come from this tier, as far as there is room already."""
        ours: list[_Reserved] = []
        for at, key in enumerate(prompt.keys):
            if key not in chosen or self._below(key, len(prompt.part_bytes)) is not tier:
                continue
            block = _block(prompt, at)
            outcome, slots = self.dram.reserve(_SELF, block, self._settings.lease_seconds)
            if outcome is ReserveOutcome.RESERVED:
                ours.append((block, slots))
            elif outcome in _NO_ROOM:
                break
        return ours

    # -- down

    def _make_room(self, size_bytes: int, tenant: TenantId) -> None:
        for victim in self.dram.make_room(size_bytes, tenant):
            self._save(victim)
            self.dram.evict(victim.key)

    def _save(self, victim: Victim) -> None:
        """Below, if it is worth it: in the fastest tier that takes it."""
        if self.dram.holds(victim.key):
            block = self.dram.block(victim.key)
            if tiers := _taking(self.lower, block, proven=victim.proven):
                self._write(tiers, block, proven=victim.proven)

    def _commit(self, fill: PartFill) -> CommitOutcome:
        outcome, block = self.dram.commit(fill)
        if block:
            self.dram.totals.store_bytes += sum(block.part_bytes)
            self._stored(block)
        return outcome

    def _stored(self, block: StoredBlock) -> None:
        """In DRAM just now, or proven just now."""
        proven = self.dram.book.is_proven(block.key)
        for tier in self.lower:
            state, mode = tier.state(), tier.settings.write_mode
            if not tier.is_open or tier.has(block):
                continue
            if on_stored(mode, state, proven=proven) is WriteStep.WRITE:
                self._write([tier], block, proven=proven)
            elif state.is_busy and mode is not WriteMode.BACK:
                self._behind[tier.name][block.key] = None

    def _catch_up(self) -> None:
        """With what was not written at once because a tier was busy, and is still in DRAM."""
        for tier in self.lower:
            behind = self._behind[tier.name]
            while behind and not tier.state().is_busy:
                key = next(iter(behind))
                del behind[key]
                if self.dram.holds(key):
                    self._stored(self.dram.block(key))

    def _write(self, tiers: Sequence[LowerStore], block: StoredBlock, *, proven: bool) -> None:
        """From the pool, which keeps the bytes until they are down, whatever is evicted; to the first of the
        tiers that can."""
        names = [part_key(block.key, part) for part in range(len(block.part_bytes))]
        lease_id, slots = self.dram.table.pin(_SELF, names, float("inf"))
        views, checksums = tuple(map(self._view_of, slots)), tuple(slot.checksum for slot in slots)
        self._send_down(tiers, _Pinned(lease_id, block, views, checksums, proven))

    def _send_down(self, tiers: Sequence[LowerStore], pinned: _Pinned) -> None:
        ended = partial(self._went_down, tiers[1:], pinned)
        tiers[0].write(Outgoing(pinned.block, pinned.views, pinned.checksums, ended))

    def _went_down(self, others: Sequence[LowerStore], pinned: _Pinned, outcome: Outcome) -> None:
        if outcome is Outcome.CORRUPT:
            self.dram.drop(pinned.block.key)
        elif outcome is not Outcome.DONE and (tiers := _taking(others, pinned.block, proven=pinned.proven)):
            self._send_down(tiers, pinned)
            return
        self.dram.table.release(pinned.lease_id)
        self._written.set()
        self._catch_up()

    def _view_of(self, slot: Slot) -> memoryview:
        return self._view(slot.offset, slot.length_bytes)


def _block(prompt: Prompt, at: int) -> StoredBlock:
    parent = prompt.keys[at - 1] if at else None
    return StoredBlock(prompt.keys[at], parent, prompt.tenant, prompt.part_bytes, prompt.shapes)


def _taking(tiers: Sequence[LowerStore], block: StoredBlock, *, proven: bool) -> Sequence[LowerStore]:
    """The tiers from the first one on that takes a block which leaves DRAM; none, where it is below already
    or not worth it."""
    for at, tier in enumerate(tiers):
        if tier.has(block):
            return ()
        if tier.is_open and on_evicted(tier.state(), proven=proven, is_below=False) is WriteStep.WRITE:
            return tiers[at:]
    return ()
