"""A store whose pool is plain memory and whose lower tiers are fakes; workers that write and read it."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import xxhash

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.eviction import Admission, FrequencySketch, LruPolicy, TierBook, WriteMode
from llmserve.kvstore.formats import BlockCodec, BlockFormat, Element, grouped
from llmserve.kvstore.pool.slabs import SlabMap
from llmserve.kvstore.pool.slot import SLOT_ALIGNMENT_BYTES, PoolUser, Slot
from llmserve.kvstore.pool.table import PoolTable
from llmserve.kvstore.store import (
    BlockSlots,
    BlockStore,
    DramTier,
    LowerStore,
    PartFill,
    Prepared,
    Prompt,
    StoreSettings,
)
from llmserve.kvstore.tiers.memory import MemoryMedium, MemoryTier

PART_BYTES = 64 << 10
UNIT_BYTES = PART_BYTES
WORKER = PoolUser("prefill-0/1")
TENANT = TenantId("default")


def chain(name: str, blocks: int) -> list[BlockHash]:
    return [BlockHash(f"{name}-{number}".encode().ljust(32, b".")) for number in range(blocks)]


def content(key: BlockHash, part: int = 0) -> bytes:
    return np.random.default_rng([*key, part]).bytes(PART_BYTES)


@dataclass(slots=True)
class World:
    store: BlockStore
    memory: memoryview
    clock: VirtualClock
    media: list[MemoryMedium]
    parts: int = 1
    tenant: TenantId = TENANT
    user: PoolUser = WORKER
    written: list[BlockHash] = field(default_factory=list)

    async def prepare(self, keys: Sequence[BlockHash], have: int = 0, **more: Any) -> Prepared:
        sizes = (PART_BYTES,) * self.parts
        return await self.store.prepare(Prompt(self.user, self.tenant, keys, sizes, have, **more))

    def fill(self, keys: Sequence[BlockHash], stores: Sequence[BlockSlots]) -> None:
        """As the ranks do."""
        fills = []
        for block in stores:
            key = keys[block.index]
            for part, slot in enumerate(block.slots):
                self.view(slot)[:] = content(key, part)
                checksum = xxhash.xxh3_64_intdigest(content(key, part))
                fills.append(PartFill(key, part, slot.generation, checksum))
            self.written.append(key)
        self.store.commit(fills)

    async def seen(self, keys: Sequence[BlockHash]) -> Prepared:
        """A prompt that is computed as far as it is not stored, and stored."""
        prepared = await self.prepare(keys)
        self.check(keys, prepared)
        self.fill(keys, prepared.stores)
        if prepared.lease_id:
            self.store.release(prepared.lease_id)
        return prepared

    def check(self, keys: Sequence[BlockHash], prepared: Prepared) -> None:
        for block in prepared.loads:
            for part, slot in enumerate(block.slots):
                data = bytes(self.view(slot))
                assert data == content(keys[block.index], part)
                assert slot.checksum == xxhash.xxh3_64_intdigest(data)

    def view(self, slot: Slot) -> memoryview:
        return self.memory[slot.offset : slot.offset + slot.length_bytes]

    async def drained(self) -> None:
        for tier in self.store.lower:
            await tier.drained()

    def check_integrity(self) -> None:
        self.store.dram.table.check_integrity()
        self.store.dram.book.check_integrity()
        for tier in self.store.lower:
            tier.book.check_integrity()


MakeWorld = Callable[..., World]


def _codec(part_bytes: int) -> BlockCodec:
    return BlockCodec(grouped(Element.BFLOAT16, part_bytes), BlockFormat())


@pytest.fixture
async def make_world() -> AsyncIterator[MakeWorld]:
    worlds: list[World] = []

    def make(
        dram_blocks: int = 8,
        lower_blocks: Sequence[int] = (),
        mode: WriteMode = WriteMode.THROUGH,
        parts: int = 1,
        media: Sequence[MemoryMedium] = (),
    ) -> World:
        clock = VirtualClock(1.0)
        memory = memoryview(bytearray(dram_blocks * parts * UNIT_BYTES))
        slabs = SlabMap(len(memory), UNIT_BYTES)
        slabs.expect(PART_BYTES)
        table = PoolTable(slabs, np.zeros(len(memory) // SLOT_ALIGNMENT_BYTES, np.int64), clock)
        dram = DramTier(table, TierBook(len(memory), LruPolicy, clock), clock)
        kept = list(media) or [MemoryMedium(blocks * parts * PART_BYTES) for blocks in lower_blocks]
        lower = [
            LowerStore(MemoryTier(medium), TierBook(medium.capacity_bytes, LruPolicy, clock), _codec, clock)
            for medium in kept
        ]
        store = BlockStore(
            dram,
            lower,
            lambda offset, length: memory[offset : offset + length],
            Admission(FrequencySketch(1000)),
            StoreSettings(lease_seconds=30.0, write_mode=mode),
        )
        worlds.append(World(store, memory, clock, kept, parts))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.store.aclose()
        world.check_integrity()
