"""Tiers at their bound: real ones take in what is new, and never more than they may."""

from pathlib import Path

import pytest

from llmserve.kvstore.eviction import WriteMode
from llmserve.kvstore.tiers.base import Tier, TierOutcome
from llmserve.kvstore.tiers.memory import MemoryMedium, MemoryTier
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from llmserve.kvstore.tiers.object import ObjectSettings, object_tier
from tests.unit.kvstore.store.conftest import PART_BYTES, MakeWorld, chain

MIB = 1 << 20
CAPACITY = 8 * MIB


def nvme(directory: Path) -> tuple[Tier, int]:
    settings = NvmeSettings(directory, CAPACITY)
    return NvmeTier(settings), settings.blob_capacity_bytes


def bucket(directory: Path) -> tuple[Tier, int]:
    settings = ObjectSettings(f"file://{directory}", "one", CAPACITY, linger_seconds=0.001)
    return object_tier(settings), settings.blob_capacity_bytes


@pytest.mark.parametrize("make", [nvme, bucket])
async def test_a_full_tier_refuses_nothing(make_world: MakeWorld, tmp_path: Path, make: type) -> None:
    world = make_world(dram_blocks=32, tiers=[make(tmp_path / "kv")], mode=WriteMode.THROUGH)
    await world.store.open()
    (tier,) = world.store.lower
    for number in range(30):
        keys = chain(f"p{number}", 16)
        for _ in range(2):
            await world.seen(keys)
            await world.drained()
        size = sum(path.stat().st_size for path in (tmp_path / "kv").rglob("*") if path.is_file())
        assert size <= CAPACITY
    ends = {outcome for (operation, outcome), _ in tier.outcomes.items() if operation == "write"}
    assert ends == {TierOutcome.DONE}
    assert tier.outcomes["write", TierOutcome.DONE] > 3 * len(tier.index)
    assert tier.index.used_bytes > 0.9 * tier.index.capacity_bytes
    assert tier.index.capacity_bytes > CAPACITY // 2


async def test_what_a_busy_tier_did_not_take_at_once_is_written_when_it_has_time(
    make_world: MakeWorld,
) -> None:
    world = make_world(dram_blocks=16, lower_blocks=[100], mode=WriteMode.THROUGH, busy_bytes=2 * PART_BYTES)
    await world.store.open()
    (tier,) = world.store.lower
    keys = chain("a", 10)
    await world.seen(keys)
    assert tier.queued_bytes == 2 * PART_BYTES, "of the pool no more is held"
    await world.drained()
    assert all(tier.holds(key, 1) for key in keys)


@pytest.mark.parametrize(
    ("mode", "once", "twice"), [(WriteMode.BACK, 0, 0), (WriteMode.AUTO, 0, 4), (WriteMode.THROUGH, 4, 4)]
)
async def test_when_blocks_are_written(make_world: MakeWorld, mode: WriteMode, once: int, twice: int) -> None:
    world = make_world(dram_blocks=16, lower_blocks=[100], mode=mode)
    await world.store.open()
    for expected in (once, twice):
        await world.seen(chain("a", 4))
        await world.drained()
        assert len(world.media[0].stored) == expected


async def test_a_prompt_counts_once_wherever_it_is_found(make_world: MakeWorld) -> None:
    """The first question of a request counts, though its device has all of it; those about what it has
    generated do not."""
    world = make_world()
    await world.store.open()
    keys = chain("a", 3)
    await world.seen(keys)
    await world.prepare(keys, have=2, load=False)
    assert not world.store.dram.index.is_proven(keys[0])
    await world.prepare(keys, load=False)
    assert world.store.dram.index.is_proven(keys[0])


async def test_victims_of_one_worker_are_stored_as_they_were_though_another_needs_the_room(
    make_world: MakeWorld,
) -> None:
    """Workers may have blocks of different sizes."""
    tier = MemoryTier(MemoryMedium(MIB * 4))
    world = make_world(dram_blocks=4, tiers=[(tier, MIB * 4)], mode=WriteMode.BACK, parts=2)
    await world.store.open()
    keys = chain("a", 4)
    await world.seen(keys)
    await world.seen(keys)
    world.parts = 1
    await world.seen(chain("b", 8))
    await world.drained()
    world.parts = 2
    await world.seen(chain("c", 4))
    await world.drained()
    assert await world.loaded(keys) == [0, 1, 2, 3]
