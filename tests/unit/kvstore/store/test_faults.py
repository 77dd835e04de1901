"""Media in trouble and bytes that change, seen through the whole store: a miss, never other bytes."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.kvstore.eviction import WriteMode
from llmserve.kvstore.tiers.base import TierOutcome
from llmserve.kvstore.tiers.memory import MemoryMedium, MemoryTier
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from llmserve.kvstore.tiers.object import ObjectSettings, object_tier
from tests.conformance.faulty_disk import EIO, ENOSPC, DiskFaults, FaultyDisk
from tests.conformance.nvme_files import flip, stored
from tests.unit.kvstore.store.conftest import PART_BYTES, MakeWorld, World, chain

MIB = 1 << 20
ROOM = 64 * PART_BYTES
KEYS = chain("a", 6)
ALL = [0, 1, 2, 3, 4, 5]


def nvme(directory: Path, faults: DiskFaults | None = None) -> tuple[NvmeTier, int]:
    settings = NvmeSettings(directory, 16 * MIB)
    return NvmeTier(settings, lambda where: FaultyDisk(where, faults or DiskFaults(), is_direct=True)), ROOM


async def opened(make_world: MakeWorld, *tiers: object, mode: WriteMode = WriteMode.THROUGH) -> World:
    world = make_world(dram_blocks=16, tiers=tiers, mode=mode)
    await world.store.open()
    return world


async def down(world: World) -> None:
    """KEYS are stored, and DRAM has them no longer."""
    await world.seen(KEYS)
    await world.drained()
    world.forget_dram(KEYS)


TROUBLES: dict[str, Callable[[DiskFaults], None]] = {
    "no-space-for-files": lambda faults: setattr(faults, "grow", ENOSPC),
    "no-space": lambda faults: setattr(faults, "write", ENOSPC),
    "error": lambda faults: setattr(faults, "write", EIO),
    "everything": lambda faults: faults.all_fail(EIO),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_a_disk_in_trouble_stores_nothing_and_the_rest_goes_on(
    make_world: MakeWorld,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[DiskFaults], None],
) -> None:
    caplog.set_level(logging.INFO, "llmserve.kvstore.store.medium_log")
    faults = DiskFaults()
    world = await opened(make_world, nvme(tmp_path, faults))
    trouble(faults)
    (disk,) = world.store.lower
    await world.seen(KEYS)
    await world.drained()
    assert disk.outcomes["write", TierOutcome.DONE] == 0
    assert disk.outcomes["write", TierOutcome.FULL] + disk.outcomes["write", TierOutcome.FAILED] == 6
    told = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(told) == 1, "not for each block"
    assert told[0].startswith("nvme-0: blocks are not written: ")
    assert disk.error == told[0].removeprefix("nvme-0: "), "as `status` shows it"
    assert disk.is_open, "what it has can be read"
    assert (len(disk.index), disk.queued_bytes) == (0, 0)
    assert await world.loaded(KEYS) == ALL, "from DRAM"
    faults.all_fail(0)
    world.forget_dram(KEYS)
    await down(world)
    assert await world.loaded(KEYS) == ALL
    assert disk.error == ""
    assert [one.message for one in caplog.records if "again" in one.message] == [
        "nvme-0: blocks are written again"
    ]


async def test_what_the_disk_refuses_goes_to_the_next_tier(make_world: MakeWorld, tmp_path: Path) -> None:
    faults, below = DiskFaults(), MemoryTier(MemoryMedium(ROOM))
    world = await opened(make_world, nvme(tmp_path, faults), (below, ROOM), mode=WriteMode.BACK)
    faults.all_fail(ENOSPC)
    await world.seen(KEYS)
    await world.seen(KEYS)
    for name in "bcd":  # they push the others out of DRAM
        await world.seen(chain(name, 6))
        await world.drained()
    disk, last = world.store.lower
    assert len(disk.index) == 0
    assert all(last.holds(key, 1) for key in KEYS)
    assert await world.loaded(KEYS) == ALL


async def test_what_cannot_be_read_is_computed_and_stored_again(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    faults = DiskFaults()
    world = await opened(make_world, nvme(tmp_path, faults))
    await down(world)
    faults.read = EIO
    prepared = await world.prepare(KEYS)
    (disk,) = world.store.lower
    assert disk.error.startswith("blocks are not read: ")
    assert (prepared.loads, [block.index for block in prepared.stores]) == ((), ALL)
    world.fill(KEYS, prepared.stores)
    assert await world.loaded(KEYS) == ALL, "from DRAM"
    faults.read = 0
    world.forget_dram(KEYS)
    assert await world.loaded(KEYS) == ALL, "it was there all the time"
    assert disk.error == ""


async def test_a_write_that_is_torn_is_not_found_by_the_next(make_world: MakeWorld, tmp_path: Path) -> None:
    faults = DiskFaults()
    world = await opened(make_world, nvme(tmp_path, faults))
    faults.write, faults.torn_after_bytes = EIO, 24 * 4096
    await down(world)
    faults.torn_after_bytes = 0
    await world.store.aclose()
    later = await opened(make_world, nvme(tmp_path))
    loads = await later.loaded(KEYS)
    assert loads == ALL[: len(loads)]
    assert len(later.store.lower[0].index) == len(loads)


# -- one byte


def positions(size: int, seed: int) -> list[int]:
    return [0, size - 1, *(random.Random(seed).randrange(size) for _ in range(10))]


@pytest.mark.parametrize("seed", range(3))
async def test_a_byte_that_changes_on_a_disk_while_it_is_open(
    make_world: MakeWorld, tmp_path: Path, seed: int
) -> None:
    world = await opened(make_world, nvme(tmp_path))
    await down(world)
    blobs = list(stored(tmp_path))
    for at in positions(sum(blob.length for blob in blobs), seed):
        flip(blobs[0].path, blobs[0].data_at + at, 0x10)
        loads = await world.loaded(KEYS)  # checks what comes
        assert loads == ALL[: len(loads)]
        assert len(world.store.lower[0].index) in (5, 6), "what is lost takes no room"
        assert len(loads) == 6 or len(world.store.lower[0].index) == 5
        await down(world)
    assert world.store.lower[0].outcomes["read", TierOutcome.CORRUPT] > 0
    assert await world.loaded(KEYS) == ALL, "what was lost was stored again"


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["heads.kv", "data.kv"])
async def test_a_byte_that_changes_on_a_disk_while_nobody_looks(
    make_world: MakeWorld, tmp_path: Path, seed: int, name: str
) -> None:
    world = await opened(make_world, nvme(tmp_path))
    await down(world)
    await world.store.aclose()
    used = 7 * 512 if name == "heads.kv" else 4096 + 6 * (PART_BYTES + 4096)
    flip(tmp_path / name, positions(used, 7)[seed], 0x01)
    later = await opened(make_world, nvme(tmp_path))
    loads = await later.loaded(KEYS)
    assert loads == ALL[: len(loads)]
    await later.seen(KEYS)
    await later.drained()
    later.forget_dram(KEYS)
    assert await later.loaded(KEYS) == ALL


@pytest.mark.parametrize("seed", range(12))
async def test_a_byte_that_changes_in_an_object(make_world: MakeWorld, tmp_path: Path, seed: int) -> None:
    def bucket() -> tuple[object, int]:
        settings = ObjectSettings(f"file://{tmp_path}/b", "one", 16 * MIB, linger_seconds=0.002)
        return object_tier(settings), ROOM

    world = await opened(make_world, bucket())
    await down(world)
    (path,) = (tmp_path / "b").rglob("*.pack")
    flip(path, positions(path.stat().st_size, 5)[seed], 0x80)
    loads = await world.loaded(KEYS)
    assert loads == ALL[: len(loads)]
    await world.store.aclose()
    later = await opened(make_world, bucket())
    loads = await later.loaded(KEYS)
    assert loads == ALL[: len(loads)]
    await later.seen(KEYS)
    await later.drained()
    later.forget_dram(KEYS)
    assert await later.loaded(KEYS) == ALL


async def test_a_byte_that_changes_in_dram_does_not_go_down(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    below = MemoryTier(MemoryMedium(ROOM))
    world = await opened(make_world, (below, ROOM), mode=WriteMode.BACK)
    await world.seen(KEYS)
    await world.seen(KEYS)
    damage(world, 3)
    for name in "bcd":
        await world.seen(chain(name, 6))
        await world.drained()
    (tier,) = world.store.lower
    assert tier.outcomes["write", TierOutcome.CORRUPT] == 1
    assert [tier.holds(key, 1) for key in KEYS] == [True, True, True, False, True, True]
    assert await world.loaded(KEYS) == [0, 1, 2]
    assert "it changed in memory" in caplog.text


async def test_a_byte_that_changes_in_dram_is_found_by_who_reads(make_world: MakeWorld) -> None:
    below = MemoryTier(MemoryMedium(ROOM))
    world = await opened(make_world, (below, ROOM))
    await world.seen(KEYS)
    await world.drained()
    damage(world, 3)
    with pytest.raises(AssertionError):  # the reader compares the checksum, as the engine does
        await world.loaded(KEYS)
    world.store.corrupt(KEYS[3])
    assert await world.loaded(KEYS) == ALL, "from below, where it went when it was right"


def damage(world: World, block: int) -> None:
    """One bit of a block in the pool."""
    lease_id, ((slot,),) = world.store.dram.lease(world.user, [KEYS[block]], 30.0)
    world.view(slot)[PART_BYTES // 3] ^= 4
    world.store.release(lease_id)
