"""Blocks on their way down: written through when they are stored, or when they leave DRAM."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from llmserve.core.ids import BlockHash, LeaseId, TenantId
from llmserve.kvstore.blocks import STORE_USER, StoredBlock, ViewOf, part_key
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction import Victim, WriteMode, WriteStep, on_evicted, on_stored
from llmserve.kvstore.store.coding import Outgoing
from llmserve.kvstore.store.lower_tier import LowerStore
from llmserve.kvstore.tiers.base import TierOutcome


@dataclass(frozen=True, slots=True)
class _Pinned:
    """A block in the pool while it goes down. checksums: of its parts."""

    lease_id: LeaseId
    block: StoredBlock
    views: tuple[memoryview, ...]
    checksums: tuple[int, ...]
    proven: bool


class Offload:
    """lower: the tiers below DRAM, fastest first. view_of: memory of the pool."""

    def __init__(self, dram: DramTier, lower: Sequence[LowerStore], view_of: ViewOf) -> None:
        self._dram, self._lower, self._view_of = dram, lower, view_of
        self._behind: dict[str, dict[BlockHash, None]] = {tier.name: {} for tier in lower}
        self.gone_down = 0  # blocks, written or given up: their memory came back
        self._went = asyncio.Event()

    def make_room(self, size_bytes: int, tenant: TenantId) -> None:
        """As far as it can be had: what leaves DRAM for it goes down, if that is worth it."""
        for victim in self._dram.make_room(size_bytes, tenant):
            self._save(victim)
            self._dram.evict(victim.key)

    async def more_room(self, since: int, gives_up_at: float) -> bool:
        """Waits until memory has come back after `gone_down` was `since`; not where nothing goes down.
        gives_up_at: on the loop's clock."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(gives_up_at):
                while self.gone_down == since and any(tier.queued_bytes for tier in self._lower):
                    self._went.clear()
                    await self._went.wait()
        return self.gone_down > since

    def stored(self, block: StoredBlock) -> None:
        """In DRAM just now, or proven just now."""
        proven = self._dram.book.is_proven(block.key)
        for tier in self._lower:
            state, mode = tier.state(), tier.settings.write_mode
            if not tier.is_open or tier.has(block):
                continue
            if on_stored(mode, state, proven=proven) is WriteStep.WRITE:
                self._write([tier], block, proven=proven)
            elif state.is_busy and mode is not WriteMode.BACK:
                self._behind[tier.name][block.key] = None

    def _save(self, victim: Victim) -> None:
        """Below, if it is worth it: in the fastest tier that takes it."""
        if self._dram.holds(victim.key):
            block = self._dram.block(victim.key)
            if tiers := _taking(self._lower, block, proven=victim.proven):
                self._write(tiers, block, proven=victim.proven)

    def _catch_up(self) -> None:
        """With what was not written at once because a tier was busy, and is still in DRAM."""
        for tier in self._lower:
            behind = self._behind[tier.name]
            while behind and not tier.state().is_busy:
                key = next(iter(behind))
                del behind[key]
                if self._dram.holds(key):
                    self.stored(self._dram.block(key))

    def _write(self, tiers: Sequence[LowerStore], block: StoredBlock, *, proven: bool) -> None:
        """From the pool, which keeps the bytes until they are down, whatever is evicted; to the first of the
        tiers that can."""
        names = [part_key(block.key, part) for part in range(len(block.part_bytes))]
        lease_id, slots = self._dram.table.pin(STORE_USER, names, float("inf"))
        views, checksums = tuple(map(self._view_of, slots)), tuple(slot.checksum for slot in slots)
        self._send_down(tiers, _Pinned(lease_id, block, views, checksums, proven))

    def _send_down(self, tiers: Sequence[LowerStore], pinned: _Pinned) -> None:
        ended = partial(self._went_down, tiers[1:], pinned)
        tiers[0].write(Outgoing(pinned.block, pinned.views, pinned.checksums, ended))

    def _went_down(self, others: Sequence[LowerStore], pinned: _Pinned, outcome: TierOutcome) -> None:
        if outcome is TierOutcome.CORRUPT:
            self._dram.drop(pinned.block.key)
        elif outcome is not TierOutcome.DONE and (
            tiers := _taking(others, pinned.block, proven=pinned.proven)
        ):
            self._send_down(tiers, pinned)
            return
        self._dram.table.release(pinned.lease_id)
        self.gone_down += 1
        self._went.set()
        self._catch_up()


def _taking(tiers: Sequence[LowerStore], block: StoredBlock, *, proven: bool) -> Sequence[LowerStore]:
    """The tiers from the first one on that takes a block which leaves DRAM; none, where it is below already
    or not worth it."""
    for at, tier in enumerate(tiers):
        if tier.has(block):
            return ()
        if tier.is_open and on_evicted(tier.state(), proven=proven, is_below=False) is WriteStep.WRITE:
            return tiers[at:]
    return ()
