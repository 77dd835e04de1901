"""The requests of workers, over DRAM and the tiers below it. One event loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from llmserve.core.ids import BlockHash, LeaseId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.stats import EvictReason, StoreStats, TierStats
from llmserve.kvstore.blocks import (
    NO_LEASE,
    BlockSlots,
    CommitOutcome,
    PartFill,
    PoolUser,
    Prepared,
    Prompt,
    Slot,
    View,
)
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction import NOBODY, Admission
from llmserve.kvstore.store.lower_tier import LowerStore
from llmserve.kvstore.store.movement import BlockLocator, Offload, Promotion
from llmserve.kvstore.tiers.base import TierOutcome

LEASE_SECONDS = 30.0
ROOM_WAIT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """lease_seconds: length of leases and reservations; a worker renews what takes longer.
    room_wait_seconds: longest wait of a block that comes up for memory held by blocks going down.
    ahead_bytes: bytes of DRAM kept free where there are lower tiers, so that blocks are written down before
    somebody needs their memory."""

    lease_seconds: float = LEASE_SECONDS
    room_wait_seconds: float = ROOM_WAIT_SECONDS
    ahead_bytes: int = 0


class BlockStore:
    """Life: open -> aclose."""

    def __init__(
        self,
        dram: DramTier,
        lower: Sequence[LowerStore],
        view: View,
        admission: Admission,
        settings: StoreSettings | None = None,
    ) -> None:
        """lower: the tiers below DRAM, the fastest first. view: memory of the arena."""
        self.dram, self.lower = dram, tuple(lower)
        self.saved_prefill_seconds = 0.0  # of prompts whose worker says what a block costs
        self._admission, self._settings = admission, settings or StoreSettings()

        def view_of(slot: Slot) -> memoryview:
            return view(slot.offset, slot.length_bytes)

        self._locator = BlockLocator(dram, self.lower)
        self._offload = Offload(dram, self.lower, view_of)
        self._promotion = Promotion(
            self._locator,
            self._offload,
            view_of,
            self._settings.lease_seconds,
            self._settings.room_wait_seconds,
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
        """Returns when the blocks that are brought up for the prompt are there, or will not come."""
        if prompt.load or not prompt.have_blocks:  # not when it asks once more, for what it has generated
            self._observe(prompt)
        run = self._locator.stored_run(prompt) if prompt.load else 0
        end = prompt.have_blocks + run
        wanted = prompt.keys[prompt.have_blocks : end]
        sources = [self._locator.source(prompt, key) for key in wanted]
        held = self.dram.index.pin(prompt.keys[:end])  # it stays while room is made for the rest
        try:
            await self._promotion.bring_up(prompt, wanted, held)
            lease_id, loads = self._lease(prompt, wanted)
            self._count_hits(prompt, sources[: len(loads)])
            stores = self._reserve(prompt, prompt.have_blocks + len(loads)) if prompt.store else ()
        finally:
            self.dram.index.unpin(held)
        if self.lower and self._settings.ahead_bytes:
            self._offload.make_room(self._settings.ahead_bytes, NOBODY)
        return Prepared(lease_id, loads, stores)

    async def prefetch(self, prompt: Prompt, wait_seconds: float) -> int:
        """Brings up the first blocks of a waiting prompt that lie below DRAM: as many as come in that time
        and as there is free room for. No block leaves for them; none is leased or counts as used. Returns how
        many came."""
        return await self._promotion.bring_up_ahead(prompt, wait_seconds)

    def commit(self, fills: Sequence[PartFill]) -> list[CommitOutcome]:
        return [self._commit(fill) for fill in fills]

    def abort(self, user: PoolUser, keys: Sequence[BlockHash]) -> None:
        """Ends the reservations of a writer that has stopped writing; those of other writers stay."""
        for key in keys:
            if self.dram.writer(key) == user:
                self.dram.abort(key)

    def renew(self, lease_id: LeaseId) -> LeaseAnswer:
        return self.dram.renew(lease_id, self._settings.lease_seconds)

    def release(self, lease_id: LeaseId) -> LeaseAnswer:
        return self.dram.release(lease_id)

    def corrupt(self, key: BlockHash) -> None:
        """Drops a block in which a reader found other bytes than were written."""
        self.dram.index.evictions[EvictReason.CORRUPT] += key in self.dram.index
        self.dram.drop(key)

    def forget(self, user: PoolUser) -> None:
        self.dram.forget(user)

    def stats(self) -> StoreStats:
        tiers = (_dram_stats(self.dram), *map(_lower_stats, self.lower))
        return StoreStats(tiers, self.saved_prefill_seconds)

    # -- parts

    def _observe(self, prompt: Prompt) -> None:
        proven = prompt.keys[: self._admission.observe(prompt.keys)]
        for tier in self.lower:
            tier.adopt(prompt.keys, prompt.tenant)
        new = [key for key in proven if self.dram.holds(key) and not self.dram.index.is_proven(key)]
        for index in (self.dram.index, *(tier.index for tier in self.lower)):
            index.touch(prompt.keys)
            index.prove(proven)
        for key in new:
            self._offload.stored(self.dram.block(key))

    def _count_hits(self, prompt: Prompt, sources: Sequence[DramTier | LowerStore | None]) -> None:
        for source in sources:
            assert source is not None, "a block of the stored run"
            source.totals.hit_blocks += 1
            source.totals.hit_tokens += prompt.block_tokens
        self.dram.totals.load_bytes += len(sources) * sum(prompt.part_bytes)
        if prompt.compute_seconds < inf:
            self.saved_prefill_seconds += len(sources) * prompt.compute_seconds

    def _lease(self, prompt: Prompt, run: Sequence[BlockHash]) -> tuple[LeaseId, tuple[BlockSlots, ...]]:
        keys = run[: self.dram.leading(run)]
        if not keys:
            return NO_LEASE, ()
        lease_id, slots = self.dram.lease(prompt.user, keys, self._settings.lease_seconds)
        first = prompt.have_blocks
        return lease_id, tuple(BlockSlots(first + at, one) for at, one in enumerate(slots))

    def _reserve(self, prompt: Prompt, first: int) -> tuple[BlockSlots, ...]:
        """Reserves the blocks that will be computed, unless they are in DRAM. A block that is below and was
        not brought up is computed, too: here it is at hand the next time."""
        indexes = [at for at in range(first, len(prompt.keys)) if not self.dram.holds(prompt.keys[at])]
        blocks = {prompt.keys[at]: at for at in indexes}
        wanted = [prompt.block(at) for at in indexes]
        ours, _ = self._offload.reserve_with_room(prompt.user, wanted, self._settings.lease_seconds)
        return tuple(BlockSlots(blocks[block.key], slots) for block, slots in ours)

    def _commit(self, fill: PartFill) -> CommitOutcome:
        outcome, block = self.dram.commit(fill)
        if block:
            self.dram.totals.store_bytes += sum(block.part_bytes)
            self._offload.stored(block)
        return outcome


def _dram_stats(tier: DramTier) -> TierStats:
    index, counters = tier.index, tier.counters
    return TierStats(
        name=tier.name,
        kind="dram",
        blocks=len(index),
        used_bytes=index.used_bytes,
        capacity_bytes=index.capacity_bytes,
        pinned_blocks=len(index.protected()),
        totals=tier.totals,
        evictions={reason: index.evictions[reason] for reason in EvictReason},
        outcomes={
            ("reserve", "reserved"): counters.reserved,
            ("reserve", "full"): counters.full,
            ("reserve", "expired"): counters.expired,
            ("write", "done"): counters.stored,
            ("write", "late"): counters.late,
            ("write", "aborted"): counters.aborted,
            ("write", "written_off"): counters.written_off,
            ("lease", "granted"): counters.leases_granted,
            ("lease", "released"): counters.leases_released,
            ("lease", "expired"): counters.leases_expired,
        },
        eviction_ages=index.eviction_ages,
    )


def _lower_stats(tier: LowerStore) -> TierStats:
    index, operations = tier.index, ("read", "write")
    return TierStats(
        name=tier.name,
        kind=tier.kind,
        blocks=len(index),
        used_bytes=index.used_bytes,
        capacity_bytes=index.capacity_bytes,
        pinned_blocks=len(index.protected()),
        queued_bytes=tier.queued_bytes,
        totals=tier.totals,
        evictions={reason: index.evictions[reason] for reason in EvictReason},
        outcomes={(name, one.value): tier.outcomes[name, one] for name in operations for one in TierOutcome},
        eviction_ages=index.eviction_ages,
        trouble=tier.error,
    )
