"""The next process: what an earlier one stored is found, counted, and let go like the rest."""

import asyncio
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from llmserve.core.ids import TenantId
from llmserve.kvstore.eviction import NOBODY
from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES
from llmserve.kvstore.tiers.memory import MemoryMedium
from tests.unit.kvstore.store.conftest import PART_BYTES, MakeAround, MakeWorld, World, chain
from tests.unit.kvstore.store.storing_process import BLOCKS, built

CHARGE = PART_BYTES + ALIGNMENT_BYTES  # of a block on a medium of pages


async def stored(make_world: MakeWorld, *names: str, blocks: int = 4) -> list[MemoryMedium]:
    """What a store has left."""
    world = make_world(dram_blocks=16, lower_blocks=[100])
    await world.store.open()
    for name in names:
        await world.seen(chain(name, blocks))
        await world.drained()
    await world.store.aclose()
    return world.media


async def again(make_world: MakeWorld, media: list[MemoryMedium]) -> World:
    world = make_world(dram_blocks=16, media=media)
    await world.store.open()
    return world


async def test_what_is_found_is_counted(make_world: MakeWorld) -> None:
    world = await again(make_world, await stored(make_world, "a", "b"))
    index = world.store.lower[0].index
    assert (len(index), index.used_bytes, index.tenant_bytes(NOBODY)) == (8, 8 * CHARGE, 8 * CHARGE)
    assert await world.loaded(chain("a", 4)) == [0, 1, 2, 3]


async def test_what_is_found_makes_room_for_what_is_new_and_the_oldest_goes_first(
    make_world: MakeWorld,
) -> None:
    media = await stored(make_world, "a", "b")
    media[0].capacity_bytes = 8 * CHARGE
    world = await again(make_world, media)
    await world.seen(chain("c", 4))
    await world.drained()
    await world.seen(chain("c", 4))
    await world.drained()
    world.forget_dram(chain("c", 4))
    assert [len(await world.loaded(chain(name, 4))) for name in "abc"] == [0, 4, 4]
    assert world.media[0].held_bytes <= world.media[0].capacity_bytes


async def test_a_smaller_capacity_holds_at_once(make_world: MakeWorld) -> None:
    media = await stored(make_world, "a", "b")
    media[0].capacity_bytes = 5 * CHARGE
    world = await again(make_world, media)
    assert len(media[0].stored) == len(world.store.lower[0].index) == 5


async def test_who_asks_for_it_takes_it_over(make_world: MakeWorld) -> None:
    world = await again(make_world, await stored(make_world, "a", "b"))
    world.tenant = TenantId("x")
    index = world.store.lower[0].index
    await world.loaded(chain("a", 3))
    assert (index.tenant_bytes(world.tenant), index.tenant_bytes(NOBODY)) == (3 * CHARGE, 5 * CHARGE)
    assert index.followers(chain("a", 4)[0]) == [chain("a", 4)[1]], "what follows what is known again"
    world.tenant = TenantId("y")
    await world.loaded(chain("a", 4))
    assert index.tenant_bytes(world.tenant) == CHARGE, "once"


async def test_a_block_of_which_a_part_is_lost_is_stored_again(make_world: MakeWorld) -> None:
    world = make_world(parts=2, lower_blocks=[100])
    await world.store.open()
    keys = chain("a", 2)
    await world.seen(keys)
    await world.drained()
    await world.store.aclose()
    lost = next(key for key in world.media[0].stored if key.startswith(keys[1]))
    del world.media[0].stored[lost]
    later = make_world(parts=2, media=world.media)
    await later.store.open()
    assert await later.loaded(keys) == [0]
    await later.seen(keys)
    await later.drained()
    later.forget_dram(keys)
    assert await later.loaded(keys) == [0, 1]


async def test_a_medium_that_is_away_is_opened_when_it_is_back(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    media = await stored(make_world, "a")
    media[0].fault = "no route to it"
    world = make_world(media=media, opens_later=True)
    await world.store.open()
    (tier,) = world.store.lower
    await world.until(lambda: "no route to it" in tier.error)
    assert await world.loaded(chain("a", 4)) == []
    await world.seen(chain("b", 4))
    assert await world.loaded(chain("b", 4)) == [0, 1, 2, 3], "DRAM works without it"
    media[0].fault = ""
    await world.until(lambda: tier.is_open)
    assert await world.loaded(chain("a", 4)) == [0, 1, 2, 3]
    assert sum("no route to it" in record.message for record in caplog.records) == 1


async def test_a_store_can_be_closed_while_a_medium_is_away(make_world: MakeWorld) -> None:
    world = make_world(media=[MemoryMedium(1 << 20, fault="away")], opens_later=True)
    await world.store.open()
    await asyncio.sleep(0)
    await world.store.aclose()
    await world.store.aclose()


def stored_until_killed(directory: Path, lines: int) -> list[int]:
    """The prompts that it said were stored, up to its last breath."""
    command = [sys.executable, "-m", "tests.unit.kvstore.store.storing_process", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = list(islice(process.stdout, lines))
        process.kill()
        said += process.stdout.readlines()
    return [int(line) for line in said if line.endswith("\n")]


async def test_after_kill_9_what_was_on_the_disk_is_used_and_nothing_else(
    tmp_path: Path, make_around: MakeAround
) -> None:
    said = stored_until_killed(tmp_path / "kv", 12)
    world = make_around(built(tmp_path / "kv"))
    await world.opened()
    for number in said:
        assert await world.loaded(chain(f"p{number}", BLOCKS)) == list(range(BLOCKS))
    torn = await world.loaded(chain(f"p{said[-1] + 1}", BLOCKS))
    assert torn == list(range(len(torn)))
    assert len(world.store.lower[0].index) >= len(said) * BLOCKS
