"""Blocks out of the store with their bytes, and into it: for export and import.

What comes out is decoded, so that it fits any tier of any cluster with the same model and layout; what
comes in is encoded, and encrypted, as the tier that takes it is told to. Room is made by the usual rules.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import xxhash

from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.eviction.tree import Node
from llmserve.kvstore.pool.slot import CommitOutcome
from llmserve.kvstore.store.admin import AnyTier, BlockFilter, StoreAdmin, parents_first
from llmserve.kvstore.store.checking import ADMIN, View, leased
from llmserve.kvstore.store.dram import StoredBlock
from llmserve.kvstore.store.lower import LowerStore, Outgoing
from llmserve.kvstore.store.words import PartFill, Prompt
from llmserve.kvstore.tiers.base import Outcome


@dataclass(frozen=True, slots=True)
class Carried:
    """A block with its bytes. parts: one for each rank; checksums: xxh3 of each."""

    key: BlockHash
    parent: BlockHash | None
    tenant: TenantId
    parts: tuple[memoryview, ...]
    checksums: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        return self.checksums == checksums_of(self.parts)


@dataclass(frozen=True, slots=True)
class TakenIn:
    stored_blocks: int = 0
    present_blocks: int = 0  # were there before
    refused_blocks: int = 0  # no room, the medium failed, or evicted for what came after


def checksums_of(parts: Sequence[memoryview]) -> tuple[int, ...]:
    return tuple(map(xxhash.xxh3_64_intdigest, parts))


class Export:
    """Each block once, from the fastest tier that has it, after those before it in its prompt. What goes
    meanwhile, or is not whole, is left out. Life: select, then iterate `blocks` once."""

    def __init__(self, admin: StoreAdmin, view: View) -> None:
        self._admin, self._view = admin, view
        self._chosen: list[tuple[AnyTier, Node]] = []

    async def select(self, wanted: BlockFilter) -> int:
        """How many there are."""
        seen: set[BlockHash] = set()
        for tier in self._admin.tiers(wanted.tier):
            nodes = [node for node in await self._admin.select(tier, wanted) if node.key not in seen]
            seen.update(node.key for node in nodes)
            self._chosen += [(tier, node) for node in parents_first(nodes)]
        return len(self._chosen)

    async def blocks(self) -> AsyncIterator[Carried]:
        for tier, node in self._chosen:
            if parts := await self._parts(tier, node.key):
                parent = node.parent.key if node.parent else None
                sums = await asyncio.to_thread(checksums_of, parts)
                yield Carried(node.key, parent, node.tenant, parts, sums)

    async def _parts(self, tier: AnyTier, key: BlockHash) -> tuple[memoryview, ...]:
        """Empty for what is gone or not whole."""
        if isinstance(tier, LowerStore):
            stored = await tier.read(key)
            return stored.parts if stored.outcome is Outcome.DONE else ()
        if not tier.holds(key):
            return ()
        with leased(tier, key) as slots:
            views = [self._view(slot.offset, slot.length_bytes) for slot in slots]
            parts = await asyncio.to_thread(lambda: tuple(memoryview(bytes(view)) for view in views))
        is_whole = checksums_of(parts) == tuple(slot.checksum for slot in slots)
        return parts if is_whole else ()


class Import:
    """Into one tier. Life: add each block -> finish."""

    def __init__(self, admin: StoreAdmin, view: View, tier: str = "") -> None:
        """tier: empty for the fastest below DRAM, or DRAM where there is none. Errors: NotFound."""
        tiers = admin.tiers(tier)
        self.tier = next((one for one in tiers if isinstance(one, LowerStore)), tiers[0])
        self._store, self._view = admin.store, view
        self._stored = self._present = self._refused = 0
        self._queued: list[tuple[BlockHash, int]] = []  # and the number of parts

    async def add(self, block: Carried) -> None:
        """Waits while the tier has much to write."""
        if isinstance(self.tier, LowerStore):
            await self._queue(self.tier, block)
        else:
            await self._put(block)

    async def finish(self) -> TakenIn:
        """Returns when all is written, or given up."""
        if isinstance(self.tier, LowerStore):
            await self.tier.drained()
            self._settle(self.tier)
        return TakenIn(self._stored, self._present, self._refused)

    def _holds(self, tier: AnyTier, block: Carried) -> bool:
        if isinstance(tier, LowerStore):
            return tier.holds(block.key, len(block.parts))
        return tier.holds(block.key)

    async def _queue(self, tier: LowerStore, block: Carried) -> None:
        if self._holds(tier, block):
            self._present += 1
            return
        if tier.state().is_busy:
            await tier.drained()
            self._settle(tier)
        sizes = tuple(map(len, block.parts))
        stored = StoredBlock(block.key, block.parent, block.tenant, sizes)
        tier.write(Outgoing(stored, block.parts, let_go=lambda: None))
        self._queued.append((block.key, len(sizes)))

    def _settle(self, tier: LowerStore) -> None:
        for key, parts in self._queued:
            is_stored = tier.holds(key, parts)
            self._stored += is_stored
            self._refused += not is_stored
        self._queued.clear()

    async def _put(self, block: Carried) -> None:
        """As a worker does that has computed it."""
        tiers: tuple[AnyTier, ...] = (self._store.dram, *self._store.lower)
        if any(self._holds(tier, block) for tier in tiers):
            self._present += 1
            return
        before = [block.parent] if block.parent else []
        sizes = tuple(map(len, block.parts))
        prompt = Prompt(ADMIN, block.tenant, [*before, block.key], sizes, len(before), load=False)
        prepared = await self._store.prepare(prompt)
        slots = prepared.stores[0].slots if prepared.stores else ()
        views = [self._view(slot.offset, slot.length_bytes) for slot in slots]
        await asyncio.to_thread(partial(_copy, block.parts, views))
        fills = [
            PartFill(block.key, part, slot.generation, block.checksums[part])
            for part, slot in enumerate(slots)
        ]
        is_stored = bool(fills) and set(self._store.commit(fills)) == {CommitOutcome.STORED}
        self._stored += is_stored
        self._refused += not is_stored


def _copy(parts: Sequence[memoryview], views: Sequence[memoryview]) -> None:
    for part, view in zip(parts, views, strict=False):
        view[:] = part
