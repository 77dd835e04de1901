"""Export of blocks with their bytes from the store, and import into it.

Exported blocks are as DRAM has them, so that they fit any tier of any cluster with the same model, layout and
`format.quantize` of DRAM: with another one no engine would find them, so they are refused. Imported blocks
are encoded and encrypted as the tier that takes them is configured. Room is made by the usual rules.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import xxhash

from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.core.ids import BlockHash
from llmserve.kvstore.blocks import CommitOutcome, PartFill, Prompt, StoredBlock, View
from llmserve.kvstore.eviction.tree import Node
from llmserve.kvstore.formats import Element, Quantize
from llmserve.kvstore.store.admin import AnyTier, BlockFilter, StoreAdmin, parents_first
from llmserve.kvstore.store.coding import Outgoing, StoredParts
from llmserve.kvstore.store.lower_tier import LowerStore
from llmserve.kvstore.store.verify import ADMIN, leased
from llmserve.kvstore.tiers.base import TierOutcome


@dataclass(frozen=True, slots=True)
class ExportedBlock:
    """A block with its bytes. parts: one for each rank. checksums: xxh3 of each part. quantize: the grid of
    the codes that the parts are; NONE for the engine's own bytes."""

    block: StoredBlock
    parts: tuple[memoryview, ...]
    checksums: tuple[int, ...]
    quantize: Quantize = Quantize.NONE

    @property
    def is_whole(self) -> bool:
        return self.checksums == checksums_of(self.parts)


@dataclass(frozen=True, slots=True)
class ImportResult:
    stored_blocks: int = 0
    present_blocks: int = 0  # were there before
    refused_blocks: int = 0  # no room, the medium failed, or evicted for what came after


def checksums_of(parts: Sequence[memoryview]) -> tuple[int, ...]:
    return tuple(map(xxhash.xxh3_64_intdigest, parts))


class Export:
    """Yields each block once, from the fastest tier that has it, after the blocks before it in its prompt. A
    block that leaves meanwhile, or is not whole, is left out. Life: select, then iterate `blocks` once."""

    def __init__(self, admin: StoreAdmin, view: View, quantize: Quantize = Quantize.NONE) -> None:
        """quantize: the format of DRAM."""
        self._admin, self._view, self._quantize = admin, view, quantize
        self._chosen: list[tuple[AnyTier, Node]] = []

    async def select(self, wanted: BlockFilter) -> int:
        """Returns the number of blocks that match."""
        seen: set[BlockHash] = set()
        for tier in self._admin.tiers(wanted.tier):
            nodes = [node for node in await self._admin.select(tier, wanted) if node.key not in seen]
            seen.update(node.key for node in nodes)
            self._chosen += [(tier, node) for node in parents_first(nodes)]
        return len(self._chosen)

    async def blocks(self) -> AsyncIterator[ExportedBlock]:
        for tier, node in self._chosen:
            parent = node.parent.key if node.parent else None
            stored = await self._read(tier, node.key)
            if stored.outcome is TierOutcome.DONE:
                sizes = tuple(map(len, stored.parts))
                block = StoredBlock(node.key, parent, node.tenant, sizes, stored.shapes)
                checksums = await asyncio.to_thread(checksums_of, stored.parts)
                quantize = self._quantize if _is_opaque(block) else Quantize.NONE
                yield ExportedBlock(block, stored.parts, checksums, quantize)

    async def _read(self, tier: AnyTier, key: BlockHash) -> StoredParts:
        if isinstance(tier, LowerStore):
            return await tier.read(key)
        if not tier.holds(key):
            return StoredParts(TierOutcome.MISSING)
        shapes = tier.block(key).shapes
        with leased(tier, key) as slots:
            views = [self._view(slot.offset, slot.length_bytes) for slot in slots]
            parts = await asyncio.to_thread(lambda: tuple(memoryview(bytes(view)) for view in views))
        is_whole = checksums_of(parts) == tuple(slot.checksum for slot in slots)
        return (
            StoredParts(TierOutcome.DONE, "", parts, shapes) if is_whole else StoredParts(TierOutcome.CORRUPT)
        )


class Import:
    """Imports into one tier. Life: add each block -> finish."""

    def __init__(
        self, admin: StoreAdmin, view: View, tier: str = "", quantize: Quantize = Quantize.NONE
    ) -> None:
        """tier: empty for the fastest below DRAM, or DRAM where there is none. quantize: the format of DRAM.
        Errors: NotFound; Unavailable for a tier that is not open."""
        tiers = admin.tiers(tier)
        self.tier = next((one for one in tiers if isinstance(one, LowerStore)), tiers[0])
        if isinstance(self.tier, LowerStore) and not self.tier.is_open:
            raise Unavailable(f"storage class '{self.tier.name}' is not used now: {self.tier.closed}")
        self._store, self._view, self._quantize = admin.store, view, quantize
        self._stored = self._present = self._refused = 0
        self._written: list[BlockHash] = []

    async def add(self, carried: ExportedBlock) -> None:
        """Waits while the tier has much to write. Errors: InvalidRequest for a block in another format than
        DRAM's, also when it goes into a lower tier: engines get all blocks through DRAM."""
        self._check_format(carried)
        if isinstance(self.tier, LowerStore):
            await self._queue(self.tier, carried)
        else:
            await self._put(carried)

    async def finish(self) -> ImportResult:
        """Returns when all blocks are written or given up."""
        if isinstance(self.tier, LowerStore):
            await self.tier.drained()
            kept = sum(key in self.tier.index for key in self._written)
            self._stored, self._refused = kept, self._refused + len(self._written) - kept
        return ImportResult(self._stored, self._present, self._refused)

    def _check_format(self, carried: ExportedBlock) -> None:
        """Bytes without numbers in them are never quantized, so they fit any format of DRAM."""
        has, wanted = carried.quantize, self._quantize
        if has is wanted or (has is Quantize.NONE and _is_opaque(carried.block)):
            return
        raise InvalidRequest(
            f"block {carried.block.key.hex()}: the file has it with `quantize: {has}`, and DRAM of this "
            f"cluster has `quantize: {wanted}` (format of its storage class), so no engine would find it; "
            f"import it into a cluster with `quantize: {has}`"
        )

    async def _queue(self, tier: LowerStore, carried: ExportedBlock) -> None:
        if tier.has(carried.block):
            self._present += 1
            return
        if tier.state().is_busy:
            await tier.drained()
        ended = partial(self._ended, carried.block.key)
        tier.write(Outgoing(carried.block, carried.parts, carried.checksums, ended))

    def _ended(self, key: BlockHash, outcome: TierOutcome) -> None:
        if outcome is TierOutcome.DONE:
            self._written.append(key)
        else:
            self._refused += 1

    async def _put(self, carried: ExportedBlock) -> None:
        """Stores a block as a worker does that has computed it."""
        block = carried.block
        if self._store.dram.holds(block.key) or any(tier.has(block) for tier in self._store.lower):
            self._present += 1
            return
        before = [block.parent] if block.parent else []
        prompt = Prompt(
            ADMIN,
            block.tenant,
            [*before, block.key],
            block.part_bytes,
            len(before),
            load=False,
            shapes=block.shapes,
        )
        prepared = await self._store.prepare(prompt)
        slots = prepared.stores[0].slots if prepared.stores else ()
        views = [self._view(slot.offset, slot.length_bytes) for slot in slots]
        await asyncio.to_thread(partial(_copy, carried.parts, views))
        fills = [
            PartFill(block.key, part, slot.generation, carried.checksums[part])
            for part, slot in enumerate(slots)
        ]
        is_stored = bool(fills) and set(self._store.commit(fills)) == {CommitOutcome.STORED}
        self._stored += is_stored
        self._refused += not is_stored


def _is_opaque(block: StoredBlock) -> bool:
    """Returns whether the bytes of a block cannot be read as numbers here, such as codes and caches in
    fp8."""
    return bool(block.shapes) and all(one.startswith(Element.OPAQUE) for one in block.shapes)


def _copy(parts: Sequence[memoryview], views: Sequence[memoryview]) -> None:
    for part, view in zip(parts, views, strict=False):
        view[:] = part
