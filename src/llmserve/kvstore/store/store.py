"""The requests of workers, over DRAM and the tiers below it. One event loop."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from llmserve.core.ids import BlockHash, LeaseId
from llmserve.kvstore.eviction import (
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
from llmserve.kvstore.store.dram import DramTier, StoredBlock
from llmserve.kvstore.store.lower import Incoming, LowerStore, Outgoing
from llmserve.kvstore.store.words import NO_LEASE, BlockSlots, PartFill, Prepared, Prompt, part_key

_log = logging.getLogger(__name__)
LEASE_SECONDS = 30.0
_SELF = PoolUser("kvmanager")

View = Callable[[int, int], memoryview]  # offset and length in the pool


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """lease_seconds: of loads and of reservations; a worker renews what takes longer."""

    lease_seconds: float = LEASE_SECONDS
    write_mode: WriteMode = WriteMode.AUTO


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
        self._coming: dict[BlockHash, asyncio.Future[None]] = {}  # blocks on their way up

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
        if prompt.load:  # the same prompt asks once more for what it generates
            self._observe(prompt)
        run = self._stored_run(prompt) if prompt.load else 0
        end = prompt.have_blocks + run
        held = self.dram.book.pin(prompt.keys[:end])  # it stays while room is made for the rest
        try:
            await self._bring_up(prompt, prompt.keys[prompt.have_blocks : end])
            lease_id, loads = self._lease(prompt, prompt.keys[prompt.have_blocks : end])
            stores = self._reserve(prompt, prompt.have_blocks + len(loads)) if prompt.store else ()
        finally:
            self.dram.book.unpin(held)
        return Prepared(lease_id, loads, stores)

    def commit(self, fills: Sequence[PartFill]) -> list[CommitOutcome]:
        return [self._commit(fill) for fill in fills]

    def abort(self, keys: Sequence[BlockHash]) -> None:
        """Their writer has stopped writing."""
        for key in keys:
            self.dram.abort(key)

    def renew(self, lease_id: LeaseId) -> LeaseAnswer:
        return self.dram.renew(lease_id, self._settings.lease_seconds)

    def release(self, lease_id: LeaseId) -> LeaseAnswer:
        return self.dram.release(lease_id)

    def corrupt(self, key: BlockHash) -> None:
        """A reader found other bytes in DRAM than were written."""
        self.dram.drop(key)

    def forget(self, user: PoolUser) -> None:
        self.dram.forget(user)

    # -- finding

    def _observe(self, prompt: Prompt) -> None:
        proven = self._admission.observe(prompt.keys)
        for book in (self.dram.book, *(tier.book for tier in self.lower)):
            book.touch(prompt.keys)
            book.prove(prompt.keys[:proven])

    def _stored_run(self, prompt: Prompt) -> int:
        """How many blocks after those it has are stored somewhere, without a gap."""
        wanted, parts = prompt.keys[prompt.have_blocks :], len(prompt.part_bytes)
        missing = (at for at, key in enumerate(wanted) if not self._is_stored(key, parts))
        return next(missing, len(wanted))

    def _is_stored(self, key: BlockHash, parts: int) -> bool:
        return self.dram.holds(key) or self._below(key, parts) is not None

    def _below(self, key: BlockHash, parts: int) -> LowerStore | None:
        return next((tier for tier in self.lower if tier.holds(key, parts)), None)

    # -- up

    async def _bring_up(self, prompt: Prompt, run: Sequence[BlockHash]) -> None:
        """What of the run is not in DRAM, as far as that is faster than to compute it."""
        await asyncio.gather(*(self._coming[key] for key in run if key in self._coming))
        chosen = set(promotions([self._place(prompt, key) for key in run], self._limits(prompt)))
        for tier in self.lower:
            keys = [key for key in run if key in chosen and self._below(key, len(prompt.part_bytes)) is tier]
            await self._bring_up_from(tier, prompt, keys)

    def _place(self, prompt: Prompt, key: BlockHash) -> BlockAt:
        size = sum(prompt.part_bytes)
        tier = None if self.dram.holds(key) else self._below(key, len(prompt.part_bytes))
        return BlockAt(key, size, tier.load_seconds(size) if tier else 0.0)

    def _limits(self, prompt: Prompt) -> PromotionLimits:
        return PromotionLimits(0.0, prompt.compute_seconds, self.dram.book.capacity_bytes)

    async def _bring_up_from(self, tier: LowerStore, prompt: Prompt, keys: Sequence[BlockHash]) -> None:
        ours = self._reserve_blocks(_SELF, prompt, [self._block(prompt, key) for key in keys])
        if not ours:
            return
        done = asyncio.get_running_loop().create_future()
        self._coming |= dict.fromkeys((block.key for block, _ in ours), done)
        try:
            parts = [(block, part, slot) for block, slots in ours for part, slot in enumerate(slots)]
            incoming = [Incoming(part_key(b.key, part), self._view_of(slot)) for b, part, slot in parts]
            sums = await tier.bring_up(incoming)
            for (block, part, slot), checksum in zip(parts, sums, strict=True):
                if checksum is not None:
                    self.dram.commit(PartFill(block.key, part, slot.generation, checksum))
        finally:
            for block, _ in ours:
                self._coming.pop(block.key)
                self.dram.abort(block.key)  # what was not committed
            done.set_result(None)

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
        """For the blocks that will be computed, unless they are in DRAM or below already."""
        parts = len(prompt.part_bytes)
        indexes = [at for at in range(first, len(prompt.keys)) if not self._is_stored(prompt.keys[at], parts)]
        blocks = {prompt.keys[at]: at for at in indexes}
        ours = self._reserve_blocks(prompt.user, prompt, [self._block(prompt, key) for key in blocks])
        return tuple(BlockSlots(blocks[block.key], slots) for block, slots in ours)

    def _block(self, prompt: Prompt, key: BlockHash) -> StoredBlock:
        at = prompt.keys.index(key)
        parent = prompt.keys[at - 1] if at else None
        return StoredBlock(key, parent, prompt.tenant, prompt.part_bytes)

    def _reserve_blocks(
        self, user: PoolUser, prompt: Prompt, blocks: Sequence[StoredBlock]
    ) -> list[tuple[StoredBlock, tuple[Slot, ...]]]:
        """As many of the first as there is room for; those that another writes are left out."""
        if not blocks:
            return []
        self._make_room(self.dram.charge(prompt.part_bytes) * len(blocks), prompt)
        ours = []
        for block in blocks:
            outcome, slots = self.dram.reserve(user, block, self._settings.lease_seconds)
            if outcome is ReserveOutcome.RESERVED:
                ours.append((block, slots))
            elif outcome in (ReserveOutcome.FULL, ReserveOutcome.TOO_LARGE):
                break
        return ours

    # -- down

    def _make_room(self, size_bytes: int, prompt: Prompt) -> None:
        for victim in self.dram.make_room(size_bytes, prompt.tenant):
            self._save(victim, prompt.part_bytes)
            self.dram.evict(victim.key)

    def _save(self, victim: Victim, part_bytes: tuple[int, ...]) -> None:
        block = StoredBlock(victim.key, victim.parent, victim.tenant, part_bytes)
        for tier in self.lower:
            is_below = tier.holds(victim.key, len(part_bytes)) or tier.is_writing(victim.key)
            step = on_evicted(tier.state(), proven=victim.proven, is_below=is_below)
            if step is WriteStep.WRITE:
                self._write(tier, block)
                return

    def _commit(self, fill: PartFill) -> CommitOutcome:
        outcome, block = self.dram.commit(fill)
        if block:
            self._stored(block)
        return outcome

    def _stored(self, block: StoredBlock) -> None:
        proven = self.dram.book.is_proven(block.key)
        for tier in self.lower:
            if on_stored(self._settings.write_mode, tier.state(), proven=proven) is WriteStep.WRITE:
                self._write(tier, block)

    def _write(self, tier: LowerStore, block: StoredBlock) -> None:
        """From the pool, which keeps the bytes until they are down, whatever is evicted."""
        parts = [part_key(block.key, part) for part in range(len(block.part_bytes))]
        lease_id, slots = self.dram.table.pin(_SELF, parts, float("inf"))
        let_go = partial(self.dram.table.release, lease_id)
        tier.write(Outgoing(block, tuple(map(self._view_of, slots)), let_go))

    def _view_of(self, slot: Slot) -> memoryview:
        return self._view(slot.offset, slot.length_bytes)
