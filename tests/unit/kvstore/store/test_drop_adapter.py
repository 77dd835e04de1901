"""What an adapter left in the store goes with it, from every tier and for good; nothing else goes."""

import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.core.ids import AdapterDigest, BlockHash
from llmserve.kvstore.blocks import adapter_label, block_of, hash_in, label_in, part_key, store_key
from llmserve.kvstore.store.admin import BlockFilter, DropResult, StoreAdmin
from llmserve.kvstore.store.build import BuiltStore
from llmserve.kvstore.store_admin_calls import StoreAdminCalls
from llmserve.kvstore.tiers.memory import MemoryMedium
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from tests.unit.kvstore.store.conftest import PART_BYTES, MakeAround, MakeWorld, World, chain
from tests.unit.kvstore.store.dropping_process import BLOCKS, GONE, OTHER, of_adapter
from tests.unit.kvstore.store.storing_process import built

BASE = chain("base", 3)


def admin_of(world: World) -> StoreAdmin:
    return StoreAdmin(world.store, world.clock)


async def below(make_world: MakeWorld, *keys: list[BlockHash], **more: Any) -> World:
    """These prompts in DRAM and in a tier below it."""
    world = make_world(**{"dram_blocks": 16, "lower_blocks": [100], **more})
    await world.store.open()
    for prompt in keys:
        await world.seen(prompt)
    await world.drained()
    return world


def labels(world: World) -> set[bytes]:
    return {label_in(node.key) for tier in world.tiers for node in tier.index.held()}


# -- keys


def test_a_key_names_the_block_and_its_adapter() -> None:
    key = store_key(BASE[0], adapter_label(GONE))
    assert (hash_in(key), label_in(key)) == (BASE[0], bytes.fromhex(GONE)[:16])
    assert block_of(part_key(key, 3)) == (key, 3)
    assert len(part_key(key, 0)) <= 64, "what a tier takes"


def test_a_block_of_the_model_itself_costs_nothing_more() -> None:
    key = store_key(BASE[0], adapter_label(AdapterDigest("")))
    assert key == BASE[0]
    assert hash_in(key) is key, "the directory has no copy of it"
    assert label_in(key) == b""


# -- drop


async def test_it_goes_from_every_tier_and_the_others_stay(make_world: MakeWorld) -> None:
    gone, other = of_adapter("a", GONE), of_adapter("a", OTHER)
    world = await below(make_world, gone, other, BASE)
    assert await admin_of(world).drop_adapter(GONE) == DropResult(8, 4 * (2 * PART_BYTES + 4096), 0)
    assert labels(world) == {b"", adapter_label(OTHER)}
    assert await world.loaded(gone) == []
    assert await world.loaded(other) == [0, 1, 2, 3]
    assert await world.loaded(BASE) == [0, 1, 2]
    assert await admin_of(world).drop_adapter(GONE) == DropResult(0, 0, 0), "again changes nothing"


async def test_what_an_operator_has_pinned_goes_too(make_world: MakeWorld) -> None:
    world = await below(make_world, of_adapter("a", GONE), BASE)
    await admin_of(world).pin(BlockFilter())
    assert (await admin_of(world).drop_adapter(GONE)).left_blocks == 0
    assert labels(world) == {b""}
    assert len(world.store.dram.index.protected()) == len(BASE), "the other pins stay"


async def test_what_is_read_goes_when_it_is_released(make_world: MakeWorld) -> None:
    keys = of_adapter("a", GONE)
    world = make_world(dram_blocks=8)
    await world.seen(keys)
    lease = (await world.prepare(keys, store=False)).lease_id
    assert await admin_of(world).drop_adapter(GONE) == DropResult(0, 0, BLOCKS)
    world.store.release(lease)
    assert (await admin_of(world).drop_adapter(GONE)).left_blocks == 0
    assert len(world.store.dram.index) == 0


async def test_what_is_being_computed_goes_when_it_was_written(make_world: MakeWorld) -> None:
    keys = of_adapter("a", GONE)
    world = make_world(dram_blocks=8)
    prepared = await world.prepare(keys)
    assert (await admin_of(world).drop_adapter(GONE)).left_blocks == BLOCKS
    world.fill(keys, prepared.stores)
    assert await admin_of(world).drop_adapter(GONE) == DropResult(BLOCKS, BLOCKS * PART_BYTES, 0)


async def test_what_waits_to_be_written_down_is_not_forgotten(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in no index then: it has left DRAM, and is not below yet."""
    monkeypatch.setattr("llmserve.kvstore.store.admin._DRAIN_SECONDS", 0.0)
    keys = of_adapter("a", GONE)
    world = make_world(dram_blocks=8, lower_blocks=[100])
    await world.store.open()
    world.store.commit([])
    prepared = await world.prepare(keys)
    world.fill(keys, prepared.stores)
    world.forget_dram(keys)
    assert world.store.lower[0].writing(), "on its way"
    assert (await admin_of(world).drop_adapter(GONE)).left_blocks > 0
    await world.drained()
    assert (await admin_of(world).drop_adapter(GONE)).left_blocks == 0
    assert labels(world) == set()


async def test_a_medium_that_is_away_is_asked_again(make_world: MakeWorld) -> None:
    """What it has is not known, or what was removed may come back: that is no answer."""
    keys = of_adapter("a", GONE)
    media = (await below(make_world, keys)).media
    media[0].fault = "no route to it"
    world = make_world(media=media, opens_later=True)
    await world.store.open()
    with pytest.raises(Unavailable, match=r"memory-0.*no route to it"):
        await admin_of(world).drop_adapter(GONE)
    media[0].fault = ""
    await world.until(lambda: world.store.lower[0].is_open)
    assert await admin_of(world).drop_adapter(GONE) == DropResult(BLOCKS, BLOCKS * (PART_BYTES + 4096), 0)
    media[0].fault = "away again"
    with pytest.raises(Unavailable, match="away again"):
        await admin_of(world).drop_adapter(GONE)


@pytest.mark.parametrize("digest", ["", "ab", "A" * 64, "g" * 64])
async def test_what_is_no_digest_is_refused(make_world: MakeWorld, digest: str) -> None:
    world = await below(make_world, BASE)
    with pytest.raises(InvalidRequest, match="a digest has 64 hexadecimal digits"):
        await admin_of(world).drop_adapter(AdapterDigest(digest))
    assert await world.loaded(BASE) == [0, 1, 2]


async def test_the_call(make_world: MakeWorld) -> None:
    world = await below(make_world, of_adapter("a", GONE), BASE)
    arena = SimpleNamespace(view=world.view_at)
    calls = StoreAdminCalls(BuiltStore(cast("Any", arena), world.store), world.clock)
    answer = await calls.drop_adapter(pb.DropAdapterRequest(digest=GONE))
    assert (answer.evicted_blocks, answer.left_blocks) == (2 * BLOCKS, 0)
    assert answer.evicted_bytes > 0
    without = await StoreAdminCalls(None, world.clock).drop_adapter(pb.DropAdapterRequest(digest=GONE))
    assert without == pb.DropAdapterResponse(), "there is nothing to drop"


# -- restarts


async def test_a_block_has_its_adapter_after_a_restart(make_world: MakeWorld) -> None:
    gone, other = of_adapter("a", GONE), of_adapter("a", OTHER)
    world = make_world(dram_blocks=16, media=(await below(make_world, gone, other, BASE)).media)
    await world.store.open()
    assert labels(world) == {b"", adapter_label(GONE), adapter_label(OTHER)}
    await admin_of(world).drop_adapter(GONE)
    assert await world.loaded(gone) == []
    assert await world.loaded(other) == [0, 1, 2, 3]
    assert await world.loaded(BASE) == [0, 1, 2]


async def test_what_an_earlier_release_stored_is_of_the_model_itself(make_world: MakeWorld) -> None:
    """Its keys are hashes alone."""
    media = (await below(make_world, BASE)).media
    assert {len(key) for key in media[0].stored} == {32 + 2}
    world = make_world(media=[MemoryMedium(media[0].capacity_bytes, stored=media[0].stored)])
    await world.store.open()
    assert labels(world) == {b""}
    assert (await admin_of(world).drop_adapter(GONE)).blocks == 0
    assert await world.loaded(BASE) == [0, 1, 2]


def killed_at(word: str, directory: Path) -> None:
    """Runs a process that stores, says so, and drops, up to its line with this word."""
    command = [sys.executable, "-m", "tests.unit.kvstore.store.dropping_process", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = [line.strip() for line in islice(process.stdout, ["dropping", "dropped"].index(word) + 1)]
        process.kill()
        assert said[-1] == word


@pytest.mark.parametrize("word", ["dropping", "dropped"])
async def test_after_kill_9_it_does_not_come_back(tmp_path: Path, word: str, make_around: MakeAround) -> None:
    """On a disk and in a bucket. Killed in the middle, some may be there, which goes with the next call."""
    killed_at(word, tmp_path)
    world = await reopened(tmp_path, make_around)
    if word == "dropped":
        assert labels(world) == {b""}
    await admin_of(world).drop_adapter(GONE)
    await world.store.aclose()
    again = await reopened(tmp_path, make_around)
    assert labels(again) == {b""}
    assert [len(tier.index) for tier in again.store.lower] == [BLOCKS, BLOCKS], "the base's, in each tier"
    assert await again.loaded(chain("base", BLOCKS)) == list(range(BLOCKS))


async def reopened(directory: Path, make_around: MakeAround) -> World:
    world = make_around(built(directory / "disk", directory / "bucket"))
    await world.opened()
    return world
