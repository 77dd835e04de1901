"""The store: what was computed once is loaded, from whichever tier; nothing is held for ever."""

import asyncio
import random

import pytest

from llmserve.core.ids import TenantId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.kvstore.blocks import CommitOutcome, PoolUser
from llmserve.kvstore.eviction import WriteMode
from llmserve.kvstore.store import PartFill, Prepared, part_key
from tests.unit.kvstore.store.conftest import MakeWorld, World, chain


def indexes(blocks: object) -> list[int]:
    return [block.index for block in blocks]  # type: ignore[attr-defined]


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_prompt_is_computed_once(make_world: MakeWorld, parts: int) -> None:
    world = make_world(parts=parts)
    keys = chain("a", 5)
    first = await world.prepare(keys)
    assert (indexes(first.loads), indexes(first.stores)) == ([], [0, 1, 2, 3, 4])
    world.fill(keys, first.stores)
    second = await world.prepare([*keys, *chain("b", 2)])
    assert (indexes(second.loads), indexes(second.stores)) == ([0, 1, 2, 3, 4], [5, 6])
    assert all(len(block.slots) == parts for block in (*second.loads, *second.stores))
    world.check(keys, second)


async def test_what_the_device_has_is_neither_loaded_nor_stored(make_world: MakeWorld) -> None:
    world = make_world()
    keys = chain("a", 4)
    await world.seen(keys[:3])
    prepared = await world.prepare(keys, have=2)
    assert (indexes(prepared.loads), indexes(prepared.stores)) == ([2], [3])


async def test_a_block_is_there_when_all_its_parts_are(make_world: MakeWorld) -> None:
    world = make_world(parts=2)
    keys = chain("a", 1)
    (block,) = (await world.prepare(keys)).stores
    one, other = (PartFill(keys[0], part, slot.generation, 7) for part, slot in enumerate(block.slots))
    assert world.store.commit([one]) == [CommitOutcome.STORED]
    assert not (await world.prepare(keys)).loads
    assert world.store.commit([other]) == [CommitOutcome.STORED]
    assert (await world.prepare(keys)).loads


async def test_two_that_compute_the_same_write_it_once(make_world: MakeWorld) -> None:
    world = make_world()
    keys = chain("a", 3)
    first, second = await world.prepare(keys), await world.prepare(keys)
    assert indexes(first.stores) == [0, 1, 2]
    assert second == Prepared()


async def test_an_abort_gives_the_room_back(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=3)
    keys = chain("a", 3)
    await world.prepare(keys)
    assert not (await world.prepare(chain("b", 3))).stores, "full, and nothing may go"
    world.store.abort(world.user, keys)
    assert indexes((await world.prepare(chain("b", 3))).stores) == [0, 1, 2]


async def test_what_another_writes_is_not_given_up(make_world: MakeWorld) -> None:
    world = make_world()
    keys = chain("a", 2)
    prepared = await world.prepare(keys)
    world.store.abort(PoolUser("decode-0/1"), keys)
    world.fill(keys, prepared.stores)
    assert indexes((await world.prepare(keys)).loads) == [0, 1]


async def test_a_reservation_ends_by_itself(make_world: MakeWorld) -> None:
    world = make_world()
    keys = chain("a", 2)
    prepared = await world.prepare(keys)
    world.clock.advance(31)
    fills = [PartFill(keys[b.index], 0, b.slots[0].generation, 1) for b in prepared.stores]
    assert world.store.commit(fills) == [CommitOutcome.LATE, CommitOutcome.LATE]
    assert indexes((await world.prepare(keys)).stores) == [0, 1]


async def test_a_lease_keeps_blocks_until_it_ends(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=2)
    keys = chain("a", 2)
    await world.seen(keys)
    prepared = await world.prepare(keys)
    assert not (await world.prepare(chain("b", 2))).stores, "leased blocks stay"
    assert world.store.renew(prepared.lease_id) is LeaseAnswer.VALID
    assert world.store.release(prepared.lease_id) is LeaseAnswer.VALID
    assert world.store.release(prepared.lease_id) is LeaseAnswer.ENDED
    assert indexes((await world.prepare(chain("b", 2))).stores) == [0, 1]


async def test_a_lease_ends_by_itself(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=2)
    keys = chain("a", 2)
    await world.seen(keys)
    await world.prepare(keys)
    world.clock.advance(31)
    assert indexes((await world.prepare(chain("b", 2))).stores) == [0, 1]


async def test_a_worker_that_died_holds_nothing(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=4, parts=2)
    keys, half = chain("a", 2), chain("b", 2)
    await world.seen(keys)
    await world.prepare(keys)
    (block, _) = (await world.prepare(half)).stores
    world.store.commit([PartFill(half[0], 0, block.slots[0].generation, 1)])
    world.store.forget(world.user)
    dram = world.store.dram
    assert (dram.open_leases, dram.reserved_blocks, dram.orphan_slots) == (0, 0, 0)
    assert len(world.store.dram.index) == 2


# -- tiers below


async def test_what_left_dram_comes_back_from_below(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=4, lower_blocks=[100])
    await world.store.open()
    keys = chain("a", 4)
    await world.seen(keys)
    await world.drained()
    await world.seen(chain("b", 4))
    assert not world.store.dram.holds(keys[0])
    await world.drained()
    prepared = await world.prepare(keys)
    assert indexes(prepared.loads) == [0, 1, 2, 3]
    world.check(keys, prepared)


async def test_what_must_go_is_written_down_when_it_was_used_again(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=4, lower_blocks=[100], mode=WriteMode.BACK)
    await world.store.open()
    keys = chain("a", 4)
    await world.seen(keys)
    await world.seen(keys)
    assert not world.media[0].stored
    await world.prepare(chain("b", 4))
    await world.drained()
    assert len(world.media[0].stored) == 4
    again = await world.prepare(keys)
    world.check(keys, again)


async def test_another_process_finds_what_an_earlier_one_stored_below(make_world: MakeWorld) -> None:
    world = make_world(lower_blocks=[100])
    await world.store.open()
    keys = chain("a", 5)
    await world.seen(keys)
    await world.drained()
    await world.store.aclose()
    later = make_world(media=world.media)
    await later.store.open()
    prepared = await later.prepare(keys)
    assert indexes(prepared.loads) == [0, 1, 2, 3, 4]
    later.check(keys, prepared)


async def test_a_damaged_block_is_a_miss_and_ends_the_prefix(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=4, lower_blocks=[100])
    await world.store.open()
    keys = chain("a", 4)
    await world.seen(keys)
    await world.drained()
    await world.seen(chain("b", 4))
    await world.drained()
    world.media[0].damage(part_key(keys[2], 0))
    prepared = await world.prepare(keys)
    assert indexes(prepared.loads) == [0, 1]
    world.check(keys, prepared)


async def test_a_medium_that_fails_costs_nothing_but_the_blocks(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=4, lower_blocks=[100])
    await world.store.open()
    world.media[0].fault = "input/output error"
    keys = chain("a", 3)
    await world.seen(keys)
    await world.drained()
    assert len(world.store.lower[0].index) == 0
    assert indexes((await world.prepare(keys)).loads) == [0, 1, 2]


async def test_a_full_tier_below_lets_the_oldest_go(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=4, lower_blocks=[6], mode=WriteMode.THROUGH)
    await world.store.open()
    for name in "abc":
        await world.seen(chain(name, 3))
        await world.seen(chain(name, 3))
        await world.drained()
    assert world.media[0].held_bytes <= world.media[0].capacity_bytes
    prepared = await world.prepare(chain("c", 3))
    assert indexes(prepared.loads) == [0, 1, 2]


async def test_what_loads_more_slowly_than_it_computes_is_computed(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=4, lower_blocks=[100])
    await world.store.open()
    keys = chain("a", 4)
    await world.seen(keys)
    await world.drained()
    await world.seen(chain("b", 4))
    assert not (await world.prepare(keys, compute_seconds=1e-9)).loads


async def test_two_that_want_the_same_bring_it_up_once(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=8, lower_blocks=[100])
    await world.store.open()
    keys = chain("a", 4)
    await world.seen(keys)
    await world.drained()
    for key in keys:
        world.store.dram.drop(key)
    one, other = await asyncio.gather(world.prepare(keys), world.prepare(keys))
    assert indexes(one.loads) == indexes(other.loads) == [0, 1, 2, 3]
    assert world.store.lower[0].outcomes.total() == 8, "four writes, four reads"


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_the_bytes_are_right_and_the_books_are_even(
    make_world: MakeWorld, seed: int
) -> None:
    random.seed(seed)
    world = make_world(dram_blocks=12, lower_blocks=[20, 40], mode=random.choice(list(WriteMode)))
    await world.store.open()
    users = [PoolUser(f"w/{number}") for number in range(3)]

    async def one() -> None:
        world.user, world.tenant = random.choice(users), TenantId(random.choice("xy"))
        keys = chain(random.choice("abcdefgh"), random.randrange(1, 7))
        prepared = await world.prepare(keys, have=random.randrange(2) and random.randrange(len(keys)))
        world.check(keys, prepared)
        if random.random() < 0.7:
            world.fill(keys, prepared.stores)
        elif random.random() < 0.7:
            world.store.abort(world.user, [keys[block.index] for block in prepared.stores])
        if prepared.lease_id and random.random() < 0.7:
            world.store.release(prepared.lease_id)
        if random.random() < 0.1:
            world.store.forget(random.choice(users))
        world.clock.advance(random.choice((0, 0, 1, 20)))

    for _ in range(150):
        await asyncio.gather(*(one() for _ in range(random.randrange(1, 4))))
        world.store.dram.settle()
        world.check_integrity()
    await world.drained()
    for _ in range(2):  # reservations end, then their quarantine
        world.clock.advance(100)
        world.store.dram.settle()
    dram = world.store.dram
    assert (dram.reserved_blocks, len(dram._leases), dram.orphan_slots) == (0, 0, 0)
    _all_is_counted(world)


def _all_is_counted(world: World) -> None:
    """What the index holds is what the pool holds."""
    dram = world.store.dram
    assert dram.index.used_bytes == dram.slots.slabs.used_bytes
