"""Blocks on their way between DRAM and the tiers below it.

A block goes down (`Offload`) when it is stored, or when it leaves DRAM, as `eviction.writing` decides. It
comes up (`Promotion`) for a prompt that is served, or ahead for one that waits.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from llmserve.core.ids import BlockHash, LeaseId, TenantId
from llmserve.kvstore.blocks import (
    STORE_USER,
    PartFill,
    PoolUser,
    Prompt,
    ReserveOutcome,
    Slot,
    StoredBlock,
    ViewOf,
    part_key,
)
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction import (
    BlockAt,
    PromotionLimits,
    Victim,
    WriteMode,
    WriteStep,
    on_evicted,
    on_stored,
    promotions,
)
from llmserve.kvstore.store.coding import Incoming, Outgoing
from llmserve.kvstore.store.lower_tier import LowerStore
from llmserve.kvstore.tiers.base import TierOutcome

_NO_ROOM = (ReserveOutcome.FULL, ReserveOutcome.TOO_LARGE)

ReservedBlock = tuple[StoredBlock, tuple[Slot, ...]]


class BlockLocator:
    """Which tier has a block now. lower: the tiers below DRAM, the fastest first."""

    def __init__(self, dram: DramTier, lower: Sequence[LowerStore]) -> None:
        self.dram, self.lower = dram, tuple(lower)

    def below(self, key: BlockHash, parts: int) -> LowerStore | None:
        """The fastest lower tier that has all parts of a block."""
        return next((tier for tier in self.lower if tier.holds(key, parts)), None)

    def stored_run(self, prompt: Prompt) -> int:
        """Number of blocks after those the worker has that are stored somewhere, without a gap."""
        wanted = prompt.keys[prompt.have_blocks :]
        missing = (at for at, key in enumerate(wanted) if self.source(prompt, key) is None)
        return next(missing, len(wanted))

    def source(self, prompt: Prompt, key: BlockHash) -> DramTier | LowerStore | None:
        """The fastest tier that has a block of the prompt; None when none has it."""
        return self.dram if self.dram.holds(key) else self.below(key, len(prompt.part_bytes))

    def costs(self, prompt: Prompt, keys: Iterable[BlockHash]) -> list[BlockAt]:
        """What it takes to have stored blocks in DRAM."""
        size = sum(prompt.part_bytes)
        tiers = [(key, self.source(prompt, key)) for key in keys]
        return [
            BlockAt(key, size, tier.load_seconds(size) if isinstance(tier, LowerStore) else 0.0)
            for key, tier in tiers
        ]


@dataclass(frozen=True, slots=True)
class _GoingDown:
    """A block in DRAM while it is written down. checksums: one for each part."""

    lease_id: LeaseId
    block: StoredBlock
    views: tuple[memoryview, ...]
    checksums: tuple[int, ...]
    proven: bool


class Offload:
    """Room in DRAM, and the blocks that go down for it."""

    def __init__(self, dram: DramTier, lower: Sequence[LowerStore], view_of: ViewOf) -> None:
        self._dram, self._lower, self._view_of = dram, lower, view_of
        # Blocks in DRAM that are to be written when their tier has time.
        self._behind: dict[str, dict[BlockHash, None]] = {tier.name: {} for tier in lower}
        self.gone_down = 0  # blocks that were written or given up: their memory came back
        self._went = asyncio.Event()

    def make_room(self, size_bytes: int, tenant: TenantId) -> None:
        """Makes as much room as can be had; what leaves DRAM goes down if that is worth it."""
        for victim in self._dram.make_room(size_bytes, tenant):
            self._save(victim)
            self._dram.evict(victim.key)
            for behind in self._behind.values():
                behind.pop(victim.key, None)

    def reserve(
        self, user: PoolUser, blocks: Sequence[StoredBlock], seconds: float
    ) -> tuple[list[ReservedBlock], list[StoredBlock]]:
        """Reserves as many of the first blocks as there is room for, and returns the others as well. Blocks
        that another user writes are in neither list."""
        ours: list[ReservedBlock] = []
        for at, block in enumerate(blocks):
            outcome, slots = self._dram.reserve(user, block, seconds)
            if outcome is ReserveOutcome.RESERVED:
                ours.append((block, slots))
            elif outcome in _NO_ROOM:
                return ours, list(blocks[at:])
        return ours, []

    def reserve_with_room(
        self, user: PoolUser, blocks: Sequence[StoredBlock], seconds: float
    ) -> tuple[list[ReservedBlock], list[StoredBlock]]:
        """As `reserve`, after room was made. blocks: of one prompt."""
        if blocks:
            self.make_room(self._dram.charge(blocks[0].part_bytes) * len(blocks), blocks[0].tenant)
        return self.reserve(user, blocks, seconds)

    async def more_room(self, since: int, gives_up_at: float) -> bool:
        """Waits until memory has come back after `gone_down` was `since`, but not when nothing goes down.
        gives_up_at: time of the loop's clock."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(gives_up_at):
                while self.gone_down == since and any(tier.queued_bytes for tier in self._lower):
                    self._went.clear()
                    await self._went.wait()
        return self.gone_down > since

    def stored(self, block: StoredBlock) -> None:
        """Takes note of a block that was stored in DRAM, or proven, just now."""
        proven = self._dram.index.is_proven(block.key)
        for tier in self._lower:
            state, mode = tier.state(), tier.settings.write_mode
            if not tier.is_open or tier.has(block):
                continue
            if on_stored(mode, state, proven=proven) is WriteStep.WRITE:
                self._write([tier], block, proven=proven)
            elif state.is_busy and mode is not WriteMode.BACK:
                self._behind[tier.name][block.key] = None

    def _save(self, victim: Victim) -> None:
        """Writes a victim to the fastest tier that takes it, if that is worth it."""
        if self._dram.holds(victim.key):
            block = self._dram.block(victim.key)
            if tiers := _taking(self._lower, block, proven=victim.proven):
                self._write(tiers, block, proven=victim.proven)

    def _catch_up(self) -> None:
        """Writes the blocks that found a tier busy and are still in DRAM."""
        for tier in self._lower:
            behind = self._behind[tier.name]
            while behind and not tier.state().is_busy:
                key = next(iter(behind))
                del behind[key]
                if self._dram.holds(key):
                    self.stored(self._dram.block(key))

    def _write(self, tiers: Sequence[LowerStore], block: StoredBlock, *, proven: bool) -> None:
        """Writes to the first of the tiers that can. The lease keeps the bytes, whatever is evicted."""
        lease_id, (slots,) = self._dram.lease(STORE_USER, [block.key], float("inf"), pins=False)
        views, checksums = tuple(map(self._view_of, slots)), tuple(slot.checksum for slot in slots)
        self._send_down(tiers, _GoingDown(lease_id, block, views, checksums, proven))

    def _send_down(self, tiers: Sequence[LowerStore], going: _GoingDown) -> None:
        ended = partial(self._went_down, tiers[1:], going)
        tiers[0].write(Outgoing(going.block, going.views, going.checksums, ended))

    def _went_down(self, others: Sequence[LowerStore], going: _GoingDown, outcome: TierOutcome) -> None:
        if outcome is TierOutcome.CORRUPT:
            self._dram.drop(going.block.key)
        elif outcome is not TierOutcome.DONE and (tiers := _taking(others, going.block, proven=going.proven)):
            self._send_down(tiers, going)
            return
        self._dram.release(going.lease_id)
        self.gone_down += 1
        self._went.set()
        self._catch_up()


def _taking(tiers: Sequence[LowerStore], block: StoredBlock, *, proven: bool) -> Sequence[LowerStore]:
    """The tiers from the first one on that takes a block which leaves DRAM; empty when the block is below
    already or not worth it."""
    for at, tier in enumerate(tiers):
        if tier.has(block):
            return ()
        if tier.is_open and on_evicted(tier.state(), proven=proven, is_below=False) is WriteStep.WRITE:
            return tiers[at:]
    return ()


class Promotion:
    """A block comes up once, whoever else asks for it meanwhile."""

    def __init__(
        self,
        locator: BlockLocator,
        offload: Offload,
        view_of: ViewOf,
        lease_seconds: float,
        room_wait_seconds: float,
    ) -> None:
        """lease_seconds: length of reservations. room_wait_seconds: longest wait for memory that is held by
        blocks going down."""
        self._dram, self._locator, self._offload, self._view_of = locator.dram, locator, offload, view_of
        self._lease_seconds, self._room_wait_seconds = lease_seconds, room_wait_seconds
        self._coming: dict[BlockHash, asyncio.Future[None]] = {}

    async def bring_up(self, prompt: Prompt, run: Sequence[BlockHash], held: list[BlockHash]) -> None:
        """Brings up what DRAM lacks of the run, as far as that is faster than to compute it. Blocks that came
        are pinned in the index and added to `held`."""
        await self._join(run, held)
        limits = PromotionLimits(0.0, prompt.compute_seconds, self._dram.index.capacity_bytes)
        chosen = self._chosen(prompt, run, limits)
        for tier in self._locator.lower:
            await self._bring_up_from(tier, self._of_tier(tier, prompt, chosen), held)

    async def bring_up_ahead(self, prompt: Prompt, wait_seconds: float) -> int:
        """See BlockStore.prefetch."""
        run = prompt.keys[: self._locator.stored_run(prompt)]
        free_bytes = self._dram.index.capacity_bytes - self._dram.index.used_bytes
        chosen = self._chosen(prompt, run, PromotionLimits(wait_seconds, 0.0, free_bytes))
        for tier in self._locator.lower:
            blocks = self._of_tier(tier, prompt, chosen)
            await self._fill_from(tier, self._offload.reserve(STORE_USER, blocks, self._lease_seconds)[0])
        return sum(map(self._dram.holds, chosen))

    def _chosen(self, prompt: Prompt, run: Sequence[BlockHash], limits: PromotionLimits) -> set[BlockHash]:
        return set(promotions(self._locator.costs(prompt, run), limits))

    def _of_tier(self, tier: LowerStore, prompt: Prompt, chosen: set[BlockHash]) -> list[StoredBlock]:
        """The chosen blocks that come from this tier."""
        parts = len(prompt.part_bytes)
        return [
            prompt.block(at)
            for at, key in enumerate(prompt.keys)
            if key in chosen and self._locator.below(key, parts) is tier
        ]

    async def _bring_up_from(self, tier: LowerStore, left: list[StoredBlock], held: list[BlockHash]) -> None:
        """Brings up as much as there is room for, now or in time."""
        gives_up_at = asyncio.get_running_loop().time() + self._room_wait_seconds
        while left:
            await self._join([block.key for block in left], held)
            before = self._offload.gone_down
            ours, left = self._offload.reserve_with_room(STORE_USER, left, self._lease_seconds)
            if ours:
                await self._fill_from(tier, ours)
                held += self._dram.index.pin(block.key for block, _ in ours)
            if left and not await self._offload.more_room(before, gives_up_at):
                return

    async def _join(self, keys: Sequence[BlockHash], held: list[BlockHash]) -> None:
        """Waits for those of the blocks that another prompt brings up."""
        joined = [key for key in keys if key in self._coming]
        if joined:
            await asyncio.wait({self._coming[key] for key in joined})
            held += self._dram.index.pin(joined)

    async def _fill_from(self, tier: LowerStore, ours: Sequence[ReservedBlock]) -> None:
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
                    self._dram.commit(PartFill(block.key, part, slot.generation, checksum))
        finally:
            for block, _ in ours:
                self._coming.pop(block.key)
                self._dram.abort(block.key)  # what was not committed
            done.set_result(None)
