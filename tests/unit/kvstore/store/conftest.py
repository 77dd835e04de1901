"""A store whose pool is plain memory and whose lower tiers are fakes; workers that write and read it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import xxhash

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.blocks import SLOT_ALIGNMENT_BYTES, PoolUser, Slot
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.kvstore.dram.slots import SlotPool
from llmserve.kvstore.eviction import Admission, FrequencySketch, TierIndex, WriteMode
from llmserve.kvstore.formats import BlockCodec, BlockFormat, BlockShape
from llmserve.kvstore.store import (
    BlockSlots,
    BlockStore,
    DramTier,
    LowerSettings,
    LowerStore,
    PartFill,
    Prepared,
    Prompt,
    StoreSettings,
)
from llmserve.kvstore.store.admin import AnyTier
from llmserve.kvstore.store.build import BuiltStore
from llmserve.kvstore.tiers.base import Tier
from llmserve.kvstore.tiers.memory import MemoryMedium, MemoryTier
from tests.support.lru_policy import LruPolicy

PART_BYTES = 64 << 10
UNIT_BYTES = PART_BYTES
ROOM_WAIT_SECONDS = 10.0  # longer than a loaded machine takes to write a few blocks
WORKER = PoolUser("prefill-0/1")
TENANT = TenantId("default")


def chain(name: str, blocks: int) -> list[BlockHash]:
    return [BlockHash(f"{name}-{number}".encode().ljust(32, b".")) for number in range(blocks)]


def content(key: BlockHash, part: int = 0) -> bytes:
    return np.random.default_rng([*key, part]).bytes(PART_BYTES)


def numbers(key: BlockHash, part: int = 0) -> bytes:
    """Of bfloat16, such as a model's."""
    values = np.random.default_rng([*key, part]).standard_normal(PART_BYTES // 2, np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


View = Callable[[int, int], memoryview]
MakeContent = Callable[[BlockHash, int], bytes]


@dataclass(slots=True)
class World:
    store: BlockStore
    view_at: View
    clock: VirtualClock = field(default_factory=lambda: VirtualClock(1.0))
    media: list[MemoryMedium] = field(default_factory=list)
    parts: int = 1
    tenant: TenantId = TENANT
    user: PoolUser = WORKER
    written: list[BlockHash] = field(default_factory=list)
    told: dict[str, set[BlockHash]] = field(default_factory=dict)  # of each tier: what it says it holds

    async def prepare(self, keys: Sequence[BlockHash], have: int = 0, **more: Any) -> Prepared:
        sizes = (PART_BYTES,) * self.parts
        return await self.store.prepare(Prompt(self.user, self.tenant, keys, sizes, have, **more))

    def fill(
        self, keys: Sequence[BlockHash], stores: Sequence[BlockSlots], make: MakeContent = content
    ) -> None:
        """As the ranks do."""
        fills = []
        for block in stores:
            key = keys[block.index]
            for part, slot in enumerate(block.slots):
                data = make(key, part)
                self.view(slot)[:] = data
                checksum = xxhash.xxh3_64_intdigest(data)
                fills.append(PartFill(key, part, slot.generation, checksum))
            self.written.append(key)
        self.store.commit(fills)

    async def seen(self, keys: Sequence[BlockHash], make: MakeContent = content, **more: Any) -> Prepared:
        """A prompt that is computed as far as it is not stored, and stored."""
        prepared = await self.prepare(keys, **more)
        if make is content:
            self.check(keys, prepared)
        self.fill(keys, prepared.stores, make)
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
        return self.view_at(slot.offset, slot.length_bytes)

    async def opened(self) -> None:
        """The store, with the tiers that open in the background."""
        await self.store.open()
        await self.until(lambda: all(tier.is_open for tier in self.store.lower))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - there is nothing to wait on
                await asyncio.sleep(0.001)

    async def drained(self) -> None:
        for tier in self.store.lower:
            await tier.drained()

    def forget_dram(self, keys: Sequence[BlockHash]) -> None:
        for key in keys:
            self.store.dram.drop(key)

    async def loaded(self, keys: Sequence[BlockHash]) -> list[int]:
        """Which of them come, as they were stored; nothing is stored anew."""
        prepared = await self.prepare(keys, store=False)
        self.check(keys, prepared)
        if prepared.lease_id:
            self.store.release(prepared.lease_id)
        return [block.index for block in prepared.loads]

    @property
    def tiers(self) -> tuple[AnyTier, ...]:
        return (self.store.dram, *self.store.lower)

    def follow(self) -> None:
        """Hears of each tier what it holds."""
        for tier in self.tiers:
            told = self.told[tier.name] = set()

            def changed(keys: Iterable[BlockHash], held: bool, told: set[BlockHash] = told) -> None:
                (told.update if held else told.difference_update)(keys)

            tier.held_changed = changed

    def check_told(self) -> None:
        for tier in self.tiers if self.told else ():
            there = {node.key for node in tier.index.held()}
            unsure = {key for key in there if isinstance(tier, LowerStore) and tier.is_writing(key)}
            unsure |= {key for key in there if isinstance(tier, DramTier) and tier.writer(key)}
            assert self.told[tier.name] - unsure == there - unsure, tier.name

    def check_integrity(self) -> None:
        self.store.dram.check_integrity()
        self.store.dram.index.check_integrity()
        for tier in self.store.lower:
            tier.index.check_integrity()


MakeWorld = Callable[..., World]
MakeAround = Callable[[BuiltStore], World]


def _codec(shape: BlockShape) -> BlockCodec:
    return BlockCodec(shape, BlockFormat())


@pytest.fixture
async def make_world() -> AsyncIterator[MakeWorld]:
    worlds: list[World] = []

    def make(
        dram_blocks: int = 8,
        lower_blocks: Sequence[int] = (),
        mode: WriteMode = WriteMode.THROUGH,
        parts: int = 1,
        media: Sequence[MemoryMedium] = (),
        tiers: Sequence[tuple[Tier, int]] = (),
        opens_later: bool = False,
        busy_bytes: int = 256 << 20,
        ahead_bytes: int = 0,
        room_wait_seconds: float = ROOM_WAIT_SECONDS,
        clock: VirtualClock | None = None,
    ) -> World:
        """tiers: instead of fakes, each with what its index may hold."""
        clock = clock or VirtualClock(1.0)
        memory = memoryview(bytearray(dram_blocks * parts * UNIT_BYTES))
        slabs = SlabMap(len(memory), UNIT_BYTES)
        slabs.expect(PART_BYTES)
        slots = SlotPool(slabs, np.zeros(len(memory) // SLOT_ALIGNMENT_BYTES, np.int64))

        def view(offset: int, length: int) -> memoryview:
            return memory[offset : offset + length]

        dram = DramTier(slots, TierIndex(len(memory), LruPolicy, clock), clock)
        kept = list(media) or [MemoryMedium(blocks * parts * PART_BYTES) for blocks in lower_blocks]
        below = list(tiers) or [(MemoryTier(medium), medium.capacity_bytes) for medium in kept]
        lower = [
            LowerStore(
                tier,
                TierIndex(capacity_bytes, LruPolicy, clock),
                _codec,
                clock,
                LowerSettings(mode, busy_bytes, opens_later),
                f"{tier.name}-{number}",
            )
            for number, (tier, capacity_bytes) in enumerate(below)
        ]
        store = BlockStore(
            dram,
            lower,
            view,
            Admission(FrequencySketch(1000)),
            StoreSettings(lease_seconds=30.0, room_wait_seconds=room_wait_seconds, ahead_bytes=ahead_bytes),
        )
        worlds.append(World(store, view, clock, kept, parts))
        worlds[-1].follow()
        return worlds[-1]

    yield make
    for world in worlds:
        world.check_told()
        await world.store.aclose()
        world.check_integrity()


@pytest.fixture
async def make_around() -> AsyncIterator[MakeAround]:
    """Worlds around stores as they are built from a manifest."""
    made: list[tuple[World, BuiltStore]] = []

    def make(built: BuiltStore) -> World:
        built.store.dram.slots.slabs.expect(PART_BYTES)
        made.append((World(built.store, built.arena.view), built))
        return made[-1][0]

    yield make
    for world, built in made:
        await built.store.aclose()
        world.check_integrity()
        await built.aclose()
