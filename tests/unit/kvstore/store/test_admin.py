"""Operations of the store: what is listed is what is there, what is pinned stays, what is evicted is gone."""

import pytest

from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import BlockHash, TenantId
from llmserve.core.stats import EvictReason
from llmserve.kvstore.store import part_key
from llmserve.kvstore.store.admin import BlockFilter, StoreAdmin
from llmserve.kvstore.store.verify import VerifyProgress, verify
from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES
from tests.unit.kvstore.store.conftest import PART_BYTES, TENANT, MakeWorld, World, chain

ALL = BlockFilter()
BELOW_BYTES = PART_BYTES + ALIGNMENT_BYTES  # what a part takes on a medium of pages
OTHER = TenantId("other")


def admin_of(world: World) -> StoreAdmin:
    return StoreAdmin(world.store, world.clock)


def named(key: BlockHash, tier: str = "") -> BlockFilter:
    return BlockFilter(tier, None, key.hex())


async def below(make_world: MakeWorld, blocks: int = 100, dram_blocks: int = 8) -> World:
    world = make_world(dram_blocks=dram_blocks, lower_blocks=[blocks])
    await world.store.open()
    return world


async def verified(world: World, wanted: BlockFilter = ALL, share: float = 1.0) -> dict[str, VerifyProgress]:
    """The last answer of each tier, with all that was corrupt."""
    last: dict[str, VerifyProgress] = {}
    corrupt: dict[str, list[BlockHash]] = {}
    async for now in verify(admin_of(world), world.view_at, wanted, share):
        last[now.tier] = now
        corrupt.setdefault(now.tier, []).extend(now.corrupt)
    for name, keys in corrupt.items():
        last[name].corrupt = keys
    return last


# -- ls


async def test_blocks_are_listed_used_last_first(make_world: MakeWorld) -> None:
    world = await below(make_world)
    keys = chain("a", 3)
    await world.seen(keys)
    await world.drained()
    world.clock.advance(10)
    world.tenant = OTHER
    await world.seen(chain("b", 2))
    await world.drained()
    admin = admin_of(world)
    blocks, total = await admin.list_blocks(ALL, 100)
    assert (len(blocks), total) == (5, 5)
    assert {block.key for block in blocks[:2]} == set(chain("b", 2))
    last = next(block for block in blocks if block.key == keys[2])
    assert (last.parent, last.tenant, last.idle_seconds) == (keys[1], TENANT, 10)
    assert [(p.tier, p.size_bytes, p.pinned) for p in last.places] == [
        ("dram", PART_BYTES, False),
        ("memory-0", BELOW_BYTES, False),
    ]
    assert len((await admin.list_blocks(ALL, 2))[0]) == 2
    assert (await admin.list_blocks(BlockFilter(tenant=OTHER), 10))[1] == 2
    assert (await admin.list_blocks(BlockFilter(hash_prefix=b"a-".hex()), 10))[1] == 3
    (only,), _ = await admin.list_blocks(named(keys[0], "memory-0"), 10)
    assert [place.tier for place in only.places] == ["memory-0"]


async def test_what_is_read_or_written_is_in_use(make_world: MakeWorld) -> None:
    world = make_world()
    await world.seen(chain("a", 1))
    await world.prepare(chain("a", 2))
    blocks, _ = await admin_of(world).list_blocks(ALL, 10)
    assert [block.places[0].in_use for block in blocks] == [True, True]


@pytest.mark.parametrize("limit", [0, 10_001])
async def test_a_listing_is_bounded(make_world: MakeWorld, limit: int) -> None:
    with pytest.raises(InvalidRequest, match="10000"):
        await admin_of(make_world()).list_blocks(ALL, limit)


async def test_what_cannot_be_found_is_named(make_world: MakeWorld) -> None:
    world = make_world()
    await world.seen(chain("a", 2))
    admin = admin_of(world)
    with pytest.raises(NotFound, match=r"'disk'.*dram"):
        await admin.list_blocks(BlockFilter("disk"), 10)
    with pytest.raises(NotFound, match="ffff"):
        await admin.pin(BlockFilter(hash_prefix="ffff"))
    with pytest.raises(NotFound, match="ffff"):
        await admin.evict(BlockFilter(hash_prefix="ffff"))
    with pytest.raises(InvalidRequest, match="2 blocks"):
        await admin.evict(BlockFilter(hash_prefix=b"a-".hex()))
    with pytest.raises(InvalidRequest, match="hexadecimal"):
        await admin.list_blocks(BlockFilter(hash_prefix="xyz"), 10)


# -- pins


async def test_a_pinned_block_stays_with_all_before_it(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=4)
    keys = chain("a", 4)
    await world.seen(keys)
    admin = admin_of(world)
    done = await admin.pin(named(keys[1]))
    assert (done.changed_blocks, done.pinned_blocks) == (1, 2)
    assert (await admin.pin(named(keys[1]))).changed_blocks == 0
    await world.seen(chain("b", 4))
    await world.seen(chain("c", 4))
    assert [world.store.dram.holds(key) for key in keys] == [True, True, False, False]
    blocks, _ = await admin.list_blocks(BlockFilter(hash_prefix=b"a-".hex()), 10)
    assert [block.places[0].pinned for block in blocks] == [True, True]
    assert world.store.stats().tiers[0].pinned_blocks == 2
    assert (await admin.pin(named(keys[1]), unpin=True)).pinned_blocks == 0
    await world.seen(chain("d", 4))
    assert not world.store.dram.holds(keys[0])


async def test_what_a_tenant_has_is_pinned_in_each_tier(make_world: MakeWorld) -> None:
    world = await below(make_world, dram_blocks=4)
    await world.seen(chain("a", 2))
    world.tenant = OTHER
    await world.seen(chain("b", 2))
    await world.drained()
    done = await admin_of(world).pin(BlockFilter(tenant=OTHER))
    assert (done.changed_blocks, done.pinned_blocks) == (4, 4)
    world.tenant = TENANT
    await world.seen(chain("c", 4))
    assert world.store.dram.leading(chain("b", 2)) == 2
    assert (await admin_of(world).pin(BlockFilter(tenant=OTHER), unpin=True)).changed_blocks == 4


async def test_only_what_was_pinned_itself_is_listed_as_such(make_world: MakeWorld) -> None:
    world = await below(make_world)
    keys = chain("a", 3)
    await world.seen(keys)
    admin = admin_of(world)
    assert await admin.list_blocks(BlockFilter(pinned=True), 100) == ([], 0)
    await admin.pin(named(keys[1]))
    (found,), total = await admin.list_blocks(BlockFilter(pinned=True), 100)
    assert (found.key, total) == (keys[1], 1)
    await admin.pin(BlockFilter(pinned=True), unpin=True)
    assert await admin.list_blocks(BlockFilter(pinned=True), 100) == ([], 0)


async def test_a_pin_does_not_outlive_its_block(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=2)
    keys = chain("a", 2)
    await world.seen(keys)
    admin = admin_of(world)
    await admin.pin(named(keys[1]))
    world.store.corrupt(keys[1])
    assert world.store.stats().tiers[0].pinned_blocks == 0
    assert world.store.stats().tiers[0].evictions[EvictReason.CORRUPT] == 1
    await world.seen(keys)
    await world.seen(chain("b", 2))
    assert not world.store.dram.holds(keys[0]), "stored again, it is as any other"


async def test_a_lease_that_ends_leaves_the_pin(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=2)
    keys = chain("a", 2)
    await world.seen(keys)
    await admin_of(world).pin(named(keys[1]))
    prepared = await world.prepare(keys)
    world.store.release(prepared.lease_id)
    assert not (await world.prepare(chain("b", 2))).stores
    await admin_of(world).pin(named(keys[1]), unpin=True)
    assert len((await world.prepare(chain("b", 2))).stores) == 2


# -- evict


async def test_what_follows_a_block_goes_with_it(make_world: MakeWorld) -> None:
    world = await below(make_world)
    keys = chain("a", 4)
    await world.seen(keys)
    await world.drained()
    done = await admin_of(world).evict(named(keys[1]))
    assert (done.blocks, done.size_bytes) == (6, 3 * PART_BYTES + 3 * BELOW_BYTES)
    assert (done.pinned_blocks, done.busy_blocks) == (0, 0)
    assert len(world.store.dram.index) == len(world.store.lower[0].index) == 1
    assert set(world.media[0].stored) == {part_key(keys[0], 0)}
    stats = world.store.stats().tiers
    assert [tier.evictions[EvictReason.ASKED] for tier in stats] == [3, 3]


async def test_only_a_tenant_or_a_tier_is_evicted(make_world: MakeWorld) -> None:
    world = await below(make_world)
    await world.seen(chain("a", 2))
    world.tenant = OTHER
    await world.seen(chain("b", 2))
    await world.drained()
    admin = admin_of(world)
    assert (await admin.evict(BlockFilter(tenant=OTHER))).blocks == 4
    assert (await admin.evict(BlockFilter(tier="dram"))).blocks == 2
    assert (len(world.store.dram.index), len(world.store.lower[0].index)) == (0, 2)
    assert (await admin.evict(ALL)).blocks == 2
    assert (await admin.evict(ALL)).blocks == 0


async def test_what_is_pinned_or_in_use_is_not_evicted(make_world: MakeWorld) -> None:
    world = make_world()
    pinned, leased = chain("a", 3), chain("b", 3)
    await world.seen(pinned)
    await world.seen(leased)
    admin = admin_of(world)
    await admin.pin(named(pinned[1]))
    await world.prepare(leased[:2])
    done = await admin.evict(ALL)
    assert (done.blocks, done.pinned_blocks, done.busy_blocks) == (2, 2, 2)
    assert world.store.dram.leading(pinned) == world.store.dram.leading(leased) == 2


async def test_more_is_evicted_than_goes_at_once(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=600)
    await world.seen(chain("a", 600))
    assert (await admin_of(world).evict(ALL)).blocks == 600
    assert world.store.dram.slots.slabs.used_bytes == 0


# -- verify


async def test_all_is_whole(make_world: MakeWorld) -> None:
    world = make_world(lower_blocks=[100], parts=2)
    await world.store.open()
    await world.seen(chain("a", 5))
    await world.drained()
    last = await verified(world)
    assert {name: (one.blocks, one.all_blocks) for name, one in last.items()} == {
        "dram": (5, 5),
        "memory-0": (5, 5),
    }
    assert {one.size_bytes for one in last.values()} == {10 * PART_BYTES, 10 * BELOW_BYTES}
    assert not any(one.corrupt for one in last.values())


async def test_corrupt_blocks_are_told_and_dropped(make_world: MakeWorld) -> None:
    world = await below(make_world)
    keys = chain("a", 4)
    await world.seen(keys)
    await world.drained()
    prepared = await world.prepare(keys)
    world.view(prepared.loads[0].slots[0])[5] ^= 1
    world.media[0].damage(part_key(keys[1], 0))
    del world.media[0].stored[part_key(keys[3], 0)]
    last = await verified(world)
    assert last["dram"].corrupt == [keys[0]]
    assert (last["memory-0"].corrupt, last["memory-0"].missing_blocks) == ([keys[1]], 1)
    assert last["memory-0"].reason
    assert not world.store.dram.holds(keys[0])
    assert len(world.store.lower[0].index) == 2
    again = await verified(world)
    assert [(one.blocks, one.corrupt, one.missing_blocks) for one in again.values()] == [
        (3, [], 0),
        (2, [], 0),
    ]


async def test_what_cannot_be_read_now_is_kept(make_world: MakeWorld) -> None:
    world = await below(make_world)
    await world.seen(chain("a", 2))
    await world.drained()
    world.media[0].fault = "input/output error"
    last = (await verified(world, BlockFilter("memory-0")))["memory-0"]
    assert (last.unreadable_blocks, last.corrupt, last.reason) == (2, [], "input/output error")
    world.media[0].fault = ""
    assert (await verified(world))["memory-0"].unreadable_blocks == 0


async def test_a_sample_is_verified(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=20)
    await world.seen(chain("a", 20))
    assert (await verified(world, share=0.25))["dram"].blocks == 5
    assert (await verified(world, share=0.001))["dram"].blocks == 1
    for share in (0, 1.5):
        with pytest.raises(InvalidRequest, match="share"):
            await verified(world, share=share)


# -- what is counted


async def test_hits_are_counted_where_they_were(make_world: MakeWorld) -> None:
    world = await below(make_world, dram_blocks=4)
    keys = chain("a", 4)
    await world.seen(keys)
    await world.drained()
    for key in keys[2:]:
        world.store.dram.drop(key)
    await world.prepare(keys, compute_seconds=0.5, block_tokens=128)
    stats = world.store.stats()
    dram, lower = stats.tiers
    assert (dram.totals.hit_blocks, dram.totals.hit_tokens) == (2, 256)
    assert (lower.totals.hit_blocks, lower.totals.hit_tokens) == (2, 256)
    assert stats.saved_prefill_seconds == 2.0
    assert (dram.totals.load_bytes, dram.totals.store_bytes) == (4 * PART_BYTES, 4 * PART_BYTES)
    assert (lower.totals.load_bytes, lower.totals.store_bytes) == (2 * PART_BYTES, 4 * PART_BYTES)
    assert lower.outcomes["write", "done"] == 4
    assert dram.outcomes["reserve", "reserved"] == 6
    assert (dram.used_bytes, dram.capacity_bytes) == (4 * PART_BYTES, 4 * PART_BYTES)


async def test_evictions_have_a_reason_and_an_age(make_world: MakeWorld) -> None:
    world = make_world(dram_blocks=2)
    await world.seen(chain("a", 2))
    world.clock.advance(100)
    await world.seen(chain("b", 2))
    dram = world.store.stats().tiers[0]
    assert dram.evictions == {
        EvictReason.ROOM: 2,
        EvictReason.QUOTA: 0,
        EvictReason.ASKED: 0,
        EvictReason.CORRUPT: 0,
    }
    assert dram.eviction_ages.sum_seconds == 200
    assert dram.eviction_ages.counts[3] == 2, "60 to 300 s"
