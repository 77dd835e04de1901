"""What is exported is used again elsewhere, or refused where no engine would find it."""

from dataclasses import replace

import pytest

from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.kvstore.blocks import PoolUser
from llmserve.kvstore.formats import Quantize
from llmserve.kvstore.store import part_key
from llmserve.kvstore.store.admin import BlockFilter, StoreAdmin
from llmserve.kvstore.store.export_import import Export, ExportedBlock, Import, ImportResult
from tests.unit.kvstore.store.conftest import PART_BYTES, MakeWorld, World, chain, content
from tests.unit.kvstore.store.dropping_process import GONE, OTHER, of_adapter

ALL = BlockFilter()


def admin_of(world: World) -> StoreAdmin:
    return StoreAdmin(world.store, world.clock)


async def below(make_world: MakeWorld, blocks: int = 100) -> World:
    world = make_world(dram_blocks=8, lower_blocks=[blocks])
    await world.store.open()
    return world


async def exported(world: World, wanted: BlockFilter = ALL) -> list[ExportedBlock]:
    export = Export(admin_of(world), world.view_at)
    await export.select(wanted)
    return [block async for block in export.blocks()]


async def imported(world: World, blocks: list[ExportedBlock], tier: str = "") -> ImportResult:
    into = Import(admin_of(world), world.view_at, tier)
    for block in blocks:
        await into.add(block)
    return await into.finish()


@pytest.mark.parametrize("tier", ["dram", "memory-0"])
async def test_blocks_are_used_again_elsewhere(make_world: MakeWorld, tier: str) -> None:
    world = make_world(lower_blocks=[100], parts=2)
    await world.store.open()
    keys = chain("a", 4)
    await world.seen(keys)
    await world.drained()
    blocks = await exported(world, BlockFilter(tier))
    assert [(one.block.key, one.block.parent) for one in blocks] == list(
        zip(keys, [None, *keys[:-1]], strict=True)
    ), "each after those before it"
    assert bytes(blocks[1].parts[1]) == content(keys[1], 1)
    other = make_world(lower_blocks=[100], parts=2)
    await other.store.open()
    assert await imported(other, blocks, tier) == ImportResult(stored_blocks=4)
    assert await imported(other, blocks, tier) == ImportResult(present_blocks=4)
    other.user = PoolUser("decode-0/1")
    prepared = await other.prepare(keys)
    assert len(prepared.loads) == 4
    other.check(keys, prepared)


async def test_a_block_of_an_adapter_is_one_elsewhere_too(make_world: MakeWorld) -> None:
    world = await below(make_world)
    keys = of_adapter("a", GONE)
    await world.seen(keys)
    await world.drained()
    other = await below(make_world)
    assert await imported(other, await exported(world)) == ImportResult(stored_blocks=len(keys))
    assert (await admin_of(other).drop_adapter(OTHER)).blocks == 0
    assert (await admin_of(other).drop_adapter(GONE)).blocks == len(keys)


async def test_each_block_is_exported_once_and_a_corrupt_one_never(make_world: MakeWorld) -> None:
    world = await below(make_world)
    keys = chain("a", 3)
    await world.seen(keys)
    await world.drained()
    world.store.dram.drop(keys[1])
    world.media[0].damage(part_key(keys[1], 0))
    assert [one.block.key for one in await exported(world)] == [keys[0], keys[2]]


async def test_import_goes_below_dram_where_it_can(make_world: MakeWorld) -> None:
    blocks = await _some(make_world)
    world = await below(make_world, blocks=3)
    assert await imported(world, blocks) == ImportResult(stored_blocks=2, refused_blocks=1)
    assert len(world.media[0].stored) == 2
    world.media[0].fault = "input/output error"
    assert (await imported(world, blocks)).refused_blocks > 0
    alone = make_world()
    assert (await imported(alone, blocks)).stored_blocks == 3
    assert len(alone.store.dram.index) == 3


async def test_a_full_pool_refuses(make_world: MakeWorld) -> None:
    blocks = await _some(make_world)
    world = make_world(dram_blocks=1)
    await world.prepare(chain("b", 1))
    assert await imported(world, blocks) == ImportResult(refused_blocks=3)
    with pytest.raises(NotFound, match="disk"):
        await imported(world, blocks, "disk")


NUMBERS, CODES = "bfloat16 512(t64)", f"opaque {PART_BYTES // 64}(t64)"


@pytest.mark.parametrize("tier", ["dram", "memory-0"])
@pytest.mark.parametrize(
    ("shape", "has", "wanted", "fits"),
    [
        (NUMBERS, Quantize.NONE, Quantize.NONE, True),
        (NUMBERS, Quantize.NONE, Quantize.INT8, False),
        (CODES, Quantize.INT8, Quantize.INT8, True),
        (CODES, Quantize.INT8, Quantize.NONE, False),
        (CODES, Quantize.INT8, Quantize.FP8, False),
        (CODES, Quantize.NONE, Quantize.INT8, True),  # bytes without numbers, which engines do not quantize
    ],
)
async def test_blocks_that_no_engine_would_find_are_refused(
    make_world: MakeWorld, tier: str, shape: str, has: Quantize, wanted: Quantize, fits: bool
) -> None:
    blocks = [
        replace(one, block=replace(one.block, shapes=(shape,)), quantize=has)
        for one in await _some(make_world)
    ]
    world = await below(make_world)
    into = Import(admin_of(world), world.view_at, tier, wanted)
    if fits:
        for block in blocks:
            await into.add(block)
        assert (await into.finish()).stored_blocks == 3
        return
    with pytest.raises(InvalidRequest, match=f"with `quantize: {has}`, and DRAM .* has `quantize: {wanted}`"):
        await into.add(blocks[0])
    assert await into.finish() == ImportResult()


@pytest.mark.parametrize(("shapes", "said"), [((NUMBERS,), "none"), ((CODES,), "int8")])
async def test_an_export_says_which_blocks_are_codes(
    make_world: MakeWorld, shapes: tuple[str, ...], said: str
) -> None:
    """A lower tier may still have blocks of the time before the manifest asked for codes."""
    world = await below(make_world)
    await world.seen(chain("a", 2), shapes=shapes)
    await world.drained()
    for name in ("dram", "memory-0"):
        export = Export(admin_of(world), world.view_at, Quantize.INT8)
        await export.select(BlockFilter(name))
        assert [one.quantize async for one in export.blocks()] == [said] * 2


async def _some(make_world: MakeWorld) -> list[ExportedBlock]:
    world = make_world()
    await world.seen(chain("a", 3))
    return await exported(world)
