"""The requests of workers, over DRAM and the tiers below it. One event loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from llmserve.core.ids import BlockHash, LeaseId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.stats import EvictReason
from llmserve.kvstore.blocks import (
    NO_LEASE,
    BlockSlots,
    CommitOutcome,
    PartFill,
    PoolUser,
    Prepared,
    Prompt,
    ViewOf,
)
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction import NOBODY, Admission
from llmserve.kvstore.store.lower_tier import LowerStore
from llmserve.kvstore.store.offload import Offload
from llmserve.kvstore.store.promotion import Promotion
from llmserve.kvstore.store.reserving import SlotReservations
from llmserve.kvstore.store.whereabouts import BlockLocator

LEASE_SECONDS = 30.0
ROOM_WAIT_SECONDS = 0.5

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
        self.saved_prefill_seconds = 0.0  # of prompts that told what a block costs
        self._admission, self._settings = admission, settings or StoreSettings()
        view_of = _of_slots(view)
        self._offload = Offload(dram, self.lower, view_of)
        self._reserving = SlotReservations(dram, self._offload, self._settings.lease_seconds)
        self._whereabouts = BlockLocator(dram, self.lower)
        self._promotion = Promotion(
            dram,
            self.lower,
            view_of,
            whereabouts=self._whereabouts,
            reserving=self._reserving,
            offload=self._offload,
            room_wait_seconds=self._settings.room_wait_seconds,
        )

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
        run = self._whereabouts.stored_run(prompt) if prompt.load else 0
        end = prompt.have_blocks + run
        sources = [self._whereabouts.source(prompt, key) for key in prompt.keys[prompt.have_blocks : end]]
        held = self.dram.book.pin(prompt.keys[:end])  # it stays while room is made for the rest
        try:
            await self._promotion.bring_up(prompt, prompt.keys[prompt.have_blocks : end], held)
            lease_id, loads = self._lease(prompt, prompt.keys[prompt.have_blocks : end])
            self._count_hits(prompt, sources[: len(loads)])
            stores = self._reserve(prompt, prompt.have_blocks + len(loads)) if prompt.store else ()
        finally:
            self.dram.book.unpin(held)
        if self.lower and self._settings.ahead_bytes:
            self._offload.make_room(self._settings.ahead_bytes, NOBODY)
        return Prepared(lease_id, loads, stores)

    async def prefetch(self, prompt: Prompt, wait_seconds: float) -> int:
        """What of the first blocks of a waiting prompt lies below DRAM comes up: as much as can in that time
        and as there is free room for. Nothing goes for it, is leased, or counts as used. How many came."""
        return await self._promotion.bring_up_ahead(prompt, wait_seconds)

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

    # -- parts

    def _observe(self, prompt: Prompt) -> None:
        proven = prompt.keys[: self._admission.observe(prompt.keys)]
        for tier in self.lower:
            tier.adopt(prompt.keys, prompt.tenant)
        new = [key for key in proven if self.dram.holds(key) and not self.dram.book.is_proven(key)]
        for book in (self.dram.book, *(tier.book for tier in self.lower)):
            book.touch(prompt.keys)
            book.prove(proven)
        for key in new:
            self._offload.stored(self.dram.block(key))

    def _count_hits(self, prompt: Prompt, sources: Sequence[DramTier | LowerStore]) -> None:
        for source in sources:
            source.totals.hit_blocks += 1
            source.totals.hit_tokens += prompt.block_tokens
        self.dram.totals.load_bytes += len(sources) * sum(prompt.part_bytes)
        if prompt.compute_seconds < inf:
            self.saved_prefill_seconds += len(sources) * prompt.compute_seconds

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
        wanted = [prompt.block(at) for at in indexes]
        ours, _ = self._reserving.with_room_made(prompt.user, prompt, wanted)
        return tuple(BlockSlots(blocks[block.key], slots) for block, slots in ours)

    def _commit(self, fill: PartFill) -> CommitOutcome:
        outcome, block = self.dram.commit(fill)
        if block:
            self.dram.totals.store_bytes += sum(block.part_bytes)
            self._offload.stored(block)
        return outcome


def _of_slots(view: View) -> ViewOf:
    return lambda slot: view(slot.offset, slot.length_bytes)
