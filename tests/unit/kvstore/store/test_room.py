"""DRAM full of blocks that are on their way down: what wants room waits a little, or does without."""

import asyncio
import time
from collections.abc import Sequence
from unittest.mock import AsyncMock

import pytest

from llmserve.kvstore.eviction import WriteMode
from llmserve.kvstore.store.coding import Outgoing
from llmserve.kvstore.tiers.base import Blob, BlobResult, ReadResult, ReadTarget, TierOutcome
from llmserve.kvstore.tiers.memory import MemoryMedium, MemoryTier
from tests.unit.kvstore.store.conftest import PART_BYTES, ROOM_WAIT_SECONDS, WORKER, MakeWorld, World, chain


class SlowTier(MemoryTier):
    """Writes end when `gate` is open."""

    def __init__(self, medium: MemoryMedium) -> None:
        super().__init__(medium)
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]:
        await self.gate.wait()
        return await super().write(blobs)


async def stuck(
    make_world: MakeWorld, room_wait_seconds: float = ROOM_WAIT_SECONDS
) -> tuple[World, SlowTier]:
    """DRAM of four blocks, which cannot be written down for now; `old` is below."""
    tier = SlowTier(MemoryMedium(100 * PART_BYTES))
    world = make_world(
        dram_blocks=4,
        tiers=[(tier, 100 * PART_BYTES)],
        mode=WriteMode.BACK,
        room_wait_seconds=room_wait_seconds,
    )
    await world.store.open()
    for name in ("old", "old", "new", "new"):
        await world.seen(chain(name, 4))
        await world.drained()
    assert await world.loaded(chain("new", 4)) == [0, 1, 2, 3]
    tier.gate.clear()
    return world, tier


async def test_what_is_to_be_stored_is_refused_at_once(make_world: MakeWorld) -> None:
    world, tier = await stuck(make_world)
    started = time.monotonic()
    prepared = await world.prepare(chain("next", 4))
    assert time.monotonic() - started < ROOM_WAIT_SECONDS
    assert not prepared.stores
    slabs = world.store.dram.slots.slabs
    assert slabs.used_bytes == slabs.capacity_bytes == 4 * PART_BYTES
    world.check_integrity()
    tier.gate.set()
    await world.drained()
    assert len((await world.prepare(chain("next", 4))).stores) == 4


async def test_what_comes_up_waits_for_room(make_world: MakeWorld) -> None:
    world, tier = await stuck(make_world)
    waiting = asyncio.create_task(world.loaded(chain("old", 4)))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    tier.gate.set()
    assert await waiting == [0, 1, 2, 3]


async def test_room_that_came_while_others_were_read_is_used(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, tier = await stuck(make_world)
    world.forget_dram(chain("new", 4)[:1])
    read = tier.read

    async def read_late(targets: Sequence[ReadTarget]) -> list[ReadResult]:
        tier.gate.set()
        await world.drained()
        return await read(targets)

    monkeypatch.setattr(tier, "read", read_late)
    assert await world.loaded(chain("old", 4)) == [0, 1, 2, 3]


async def test_it_does_not_wait_for_ever(make_world: MakeWorld) -> None:
    world, tier = await stuck(make_world, 0.1)
    started = time.monotonic()
    several = await asyncio.gather(*(world.loaded(chain("old", 4)) for _ in range(3)))
    assert several == [[], [], []]
    assert time.monotonic() - started < ROOM_WAIT_SECONDS
    world.check_integrity()
    tier.gate.set()
    await world.drained()
    assert await world.loaded(chain("old", 4)) == [0, 1, 2, 3], "what was evicted in vain has left room"
    assert len(world.store.dram._leases) == 0


async def test_who_waits_may_go_away(make_world: MakeWorld) -> None:
    world, tier = await stuck(make_world)
    waiting = [asyncio.create_task(world.loaded(chain("old", 4))) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    tier.gate.set()
    _, *others = await asyncio.gather(*waiting, return_exceptions=True)
    assert others == [[0, 1, 2, 3]] * 2


async def test_a_prompt_larger_than_dram_comes_up_as_far_as_it_fits(make_world: MakeWorld) -> None:
    tier = SlowTier(MemoryMedium(100 * PART_BYTES))
    world = make_world(dram_blocks=4, tiers=[(tier, 100 * PART_BYTES)])
    await world.store.open()
    keys = chain("long", 10)
    for end in (4, 8, 10):
        await world.seen(keys[:end])
        await world.seen(keys[:end])
        await world.drained()
    loads = await world.loaded(keys)
    assert loads == list(range(len(loads)))
    assert loads


async def test_room_is_made_before_it_is_needed(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=32, lower_blocks=[1000], mode=WriteMode.BACK, ahead_bytes=8 * PART_BYTES)
    await world.store.open()
    for number in range(12):
        prepared = await world.seen(chain(f"p{number}", 8))
        assert len(prepared.stores) == 8, f"prompt {number} is stored, though DRAM is full"
        await world.drained()
    assert len(await world.loaded(chain("p0", 8))) == 8


async def test_blocks_that_found_a_tier_busy_are_forgotten_when_they_leave(make_world: MakeWorld) -> None:
    """A medium that hangs, or is always too slow, writes none of them."""
    tier = SlowTier(MemoryMedium(1000 * PART_BYTES))
    world = make_world(dram_blocks=16, tiers=[(tier, 1000 * PART_BYTES)], busy_bytes=PART_BYTES)
    await world.store.open()
    tier.gate.clear()
    stored = [len((await world.seen(chain(f"p{number}", 4))).stores) for number in range(50)]
    assert sum(stored) > 100
    assert len(world.store._offload._behind[world.store.lower[0].name]) <= 16
    tier.gate.set()
    await world.until(lambda: world.store.lower[0].holds(chain("p49", 4)[0], 1))


class FaultyTier(MemoryTier):
    """Raises, which no tier may."""

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]:
        raise RuntimeError("a fault of this program")


async def test_a_fault_of_a_tier_holds_no_memory(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(dram_blocks=4, tiers=[(FaultyTier(MemoryMedium(1 << 20)), 1 << 20)])
    await world.store.open()
    for name in "abc":
        await world.seen(chain(name, 4))
        await world.drained()
    for _ in range(2):  # the first one makes room
        prepared = await world.prepare(chain("d", 4))
        await world.drained()
    assert len(prepared.stores) == 4
    (tier,) = world.store.lower
    assert (len(tier.index), tier.queued_bytes) == (0, 0)
    assert len(world.store.dram._leases) == 0
    assert "a fault of this program" in caplog.text


async def test_a_fault_of_who_waits_for_a_write_ends_no_other(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """A tier whose writes have ended for ever would hold ever more of DRAM."""
    world = make_world(dram_blocks=8, lower_blocks=[100], mode=WriteMode.BACK)
    await world.store.open()
    (tier,) = world.store.lower
    keys = chain("a", 2)
    await world.seen(keys)
    block = world.store.dram.block(keys[0])
    (slots,) = world.store.dram.lease(WORKER, keys[:1], 30.0)[1]
    views, sums = tuple(map(world.view, slots)), tuple(slot.checksum for slot in slots)

    def fail(outcome: TierOutcome) -> None:
        raise RuntimeError("a fault of this program")

    outcomes: list[TierOutcome] = []
    tier.write(Outgoing(block, views, sums, fail))
    await world.until(lambda: not tier.queued_bytes)
    tier.write(Outgoing(block, views, sums, outcomes.append))
    await world.until(lambda: bool(outcomes))
    assert "a fault of this program" in caplog.text


async def test_a_fault_at_the_opening_is_said_and_tried_again(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = MemoryTier(MemoryMedium(100 * PART_BYTES))
    world = make_world(tiers=[(tier, 100 * PART_BYTES)], opens_later=True)
    with monkeypatch.context() as patched:
        patched.setattr(tier, "open", AsyncMock(side_effect=RuntimeError("a fault of this program")))
        await world.store.open()
        await world.until(lambda: "a fault of this program" in world.store.lower[0].error)
    await world.until(lambda: world.store.lower[0].is_open)
    assert "a fault of this program" in caplog.text
