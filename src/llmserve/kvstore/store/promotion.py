"""Blocks on their way up to DRAM: for a prompt that is served, or for one that waits."""

import asyncio
from collections.abc import Sequence

from llmserve.core.ids import BlockHash
from llmserve.kvstore.blocks import STORE_USER, PartFill, Prompt, StoredBlock, ViewOf, part_key
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction import PromotionLimits, promotions
from llmserve.kvstore.store.coding import Incoming
from llmserve.kvstore.store.lower_tier import LowerStore
from llmserve.kvstore.store.offload import Offload
from llmserve.kvstore.store.reserving import Reserved, SlotReservations
from llmserve.kvstore.store.whereabouts import BlockLocator


class Promotion:
    """A block comes up once, whoever else asks for it meanwhile. room_wait_seconds: how long it waits for
    memory that is held for what goes down."""

    def __init__(
        self,
        dram: DramTier,
        lower: Sequence[LowerStore],
        view_of: ViewOf,
        *,
        whereabouts: BlockLocator,
        reserving: SlotReservations,
        offload: Offload,
        room_wait_seconds: float,
    ) -> None:
        self._dram, self._lower, self._view_of = dram, lower, view_of
        self._whereabouts, self._reserving, self._offload = whereabouts, reserving, offload
        self._room_wait_seconds = room_wait_seconds
        self._coming: dict[BlockHash, asyncio.Future[None]] = {}

    async def bring_up(self, prompt: Prompt, run: Sequence[BlockHash], held: list[BlockHash]) -> None:
        """What of the run is not in DRAM, as far as that is faster than to compute it. What came is pinned
        in the book, and in `held`."""
        await self._join(run, held)
        limits = PromotionLimits(0.0, prompt.compute_seconds, self._dram.book.capacity_bytes)
        chosen = self._chosen(prompt, run, limits)
        for tier in self._lower:
            await self._bring_up_from(tier, prompt, self._of_tier(tier, prompt, chosen), held)

    async def bring_up_ahead(self, prompt: Prompt, wait_seconds: float) -> int:
        """See BlockStore.prefetch."""
        run = prompt.keys[: self._whereabouts.stored_run(prompt)]
        free_bytes = self._dram.book.capacity_bytes - self._dram.book.used_bytes
        chosen = self._chosen(prompt, run, PromotionLimits(wait_seconds, 0.0, free_bytes))
        for tier in self._lower:
            ours, _ = self._reserving.within_room(STORE_USER, self._of_tier(tier, prompt, chosen))
            await self._fill_from(tier, ours)
        return sum(map(self._dram.holds, chosen))

    def _chosen(self, prompt: Prompt, run: Sequence[BlockHash], limits: PromotionLimits) -> set[BlockHash]:
        return set(promotions([self._whereabouts.place(prompt, key) for key in run], limits))

    def _of_tier(self, tier: LowerStore, prompt: Prompt, chosen: set[BlockHash]) -> list[StoredBlock]:
        """Of the chosen blocks those that come from this tier."""
        parts = len(prompt.part_bytes)
        return [
            prompt.block(at)
            for at, key in enumerate(prompt.keys)
            if key in chosen and self._whereabouts.below(key, parts) is tier
        ]

    async def _bring_up_from(
        self, tier: LowerStore, prompt: Prompt, left: list[StoredBlock], held: list[BlockHash]
    ) -> None:
        """As far as there is room, or comes to be in time."""
        gives_up_at = asyncio.get_running_loop().time() + self._room_wait_seconds
        while left:
            await self._join([block.key for block in left], held)
            before = self._offload.gone_down
            ours, left = self._reserving.with_room_made(STORE_USER, prompt, left)
            if ours:
                await self._fill_from(tier, ours)
                held += self._dram.book.pin(block.key for block, _ in ours)
            if left and not await self._offload.more_room(before, gives_up_at):
                return

    async def _join(self, keys: Sequence[BlockHash], held: list[BlockHash]) -> None:
        """Waits for those of the blocks that another prompt brings up."""
        joined = [key for key in keys if key in self._coming]
        if joined:
            await asyncio.wait({self._coming[key] for key in joined})
            held += self._dram.book.pin(joined)

    async def _fill_from(self, tier: LowerStore, ours: Sequence[Reserved]) -> None:
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
