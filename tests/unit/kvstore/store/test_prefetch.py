"""What a waiting prompt will need is in DRAM before it runs."""

import pytest

from llmserve.kvstore.store import Prompt
from tests.unit.kvstore.store.conftest import PART_BYTES, TENANT, WORKER, MakeWorld, World, chain


async def below(make_world: MakeWorld, blocks: int = 4, dram_blocks: int = 8) -> World:
    """A prompt `a` that is in the lower tier only."""
    world = make_world(dram_blocks=dram_blocks, lower_blocks=[100])
    await world.store.open()
    await world.seen(chain("a", blocks))
    await world.drained()
    world.forget_dram(chain("a", blocks))
    return world


async def prefetch(world: World, blocks: int = 4, wait_seconds: float = 1000.0) -> int:
    prompt = Prompt(WORKER, TENANT, chain("a", blocks), (PART_BYTES,) * world.parts)
    return await world.store.prefetch(prompt, wait_seconds)


async def test_a_waiting_prompt_is_in_dram_before_it_runs(make_world: MakeWorld) -> None:
    world = await below(make_world)
    assert await prefetch(world) == 4
    assert world.store.dram.leading(chain("a", 4)) == 4
    reads = world.store.lower[0].totals.load_bytes
    assert await world.loaded(chain("a", 4)) == [0, 1, 2, 3]  # with the bytes that were stored
    assert world.store.lower[0].totals.load_bytes == reads  # nothing is read again


async def test_nothing_is_leased_reserved_or_counted(make_world: MakeWorld) -> None:
    world = await below(make_world)
    hits = world.store.lower[0].totals.hit_blocks
    await prefetch(world)
    assert (world.store.dram.open_leases, world.store.dram.reserved_blocks) == (0, 0)
    assert (world.store.dram.totals.hit_blocks, world.store.lower[0].totals.hit_blocks) == (0, hits)


async def test_where_dram_is_full_nothing_goes_for_it(make_world: MakeWorld) -> None:
    world = await below(make_world)
    await world.seen(chain("b", 8))
    assert await prefetch(world) == 0
    assert world.store.dram.leading(chain("b", 8)) == 8


async def test_as_much_as_there_is_room_for(make_world: MakeWorld) -> None:
    world = await below(make_world)
    await world.seen(chain("b", 5))
    assert await prefetch(world) == 3
    assert world.store.dram.leading(chain("a", 4)) == 3
    assert world.store.dram.leading(chain("b", 5)) == 5


@pytest.mark.parametrize(("wait_blocks", "come"), [(0.0, 0), (0.5, 0), (2.5, 2), (9.0, 4)])
async def test_as_much_as_comes_while_it_waits(make_world: MakeWorld, wait_blocks: float, come: int) -> None:
    world = await below(make_world)
    wait_seconds = wait_blocks * world.store.lower[0].load_seconds(PART_BYTES)
    assert await prefetch(world, wait_seconds=wait_seconds) == come


async def test_what_is_not_stored_ends_it(make_world: MakeWorld) -> None:
    world = await below(make_world, blocks=2)
    assert await prefetch(world, blocks=4) == 2  # the index knew of more than there is now


async def test_a_block_that_the_medium_lost_is_a_miss(make_world: MakeWorld) -> None:
    world = await below(make_world)
    world.media[0].stored.clear()
    assert await prefetch(world) == 0
    assert world.store.dram.reserved_blocks == 0
