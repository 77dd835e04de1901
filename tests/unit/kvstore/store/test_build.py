"""From storage classes to a store that works, with real tiers."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmserve.config.load import parse_manifest
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import ManifestError, StartFailed
from llmserve.core.ids import TenantId
from llmserve.kvstore.eviction import WriteMode
from llmserve.kvstore.formats import Element, grouped
from llmserve.kvstore.store.build import BuiltStore, StoreParts, build_store
from tests.unit.kvstore.store.conftest import PART_BYTES, MakeAround, World, chain, content, numbers

MIB = 1 << 20
HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:org/name}}\n"
KEY = "0f" * 32
SHAPE = grouped(Element.BFLOAT16, PART_BYTES).text()


def gib(mib: float) -> float:
    return mib / 1024


def built(classes: str, more: str = "", environment: Mapping[str, str] | None = None) -> BuiltStore:
    manifest = parse_manifest(f"{HEAD}storageClasses:\n{classes}{more}", "m.yaml")
    store = build_store(StoreParts.of(manifest, "kvmanager", environment or {}), VirtualClock(1.0))
    assert store
    return store


async def test_without_classes_there_is_no_store() -> None:
    parts = StoreParts.of(parse_manifest(HEAD, "m.yaml"), "kvmanager", {})
    assert build_store(parts, VirtualClock(1.0)) is None


def dram(mib: float) -> str:
    return f"  - {{name: fast, tier: dram, capacity_gb: {gib(mib)}}}\n"


def nvme(directory: Path, mib: float = 64, more: str = "") -> str:
    place = f"tier: nvme, capacity_gb: {gib(mib)}, location: {directory}"
    return f"  - {{name: disk, {place}, write: through{more}}}\n"


def bucket(directory: Path, mib: float = 64, more: str = "") -> str:
    place = f"tier: object, capacity_gb: {gib(mib)}, location: 'file://{directory}'"
    return f"  - {{name: far, {place}, write: through{more}}}\n"


FORMATS = {
    "raw": "",
    "zstd": ", format: {compress: zstd}",
    "encrypted": ", format: {encrypt: [{id: k1, env: KV_KEY}]}",
    "zstd-encrypted": ", format: {compress: zstd, encrypt: [{id: k1, env: KV_KEY}]}",
}


@pytest.mark.parametrize("more", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("place", [nvme, bucket])
async def test_blocks_come_back_from_every_tier_in_every_format(
    tmp_path: Path, make_around: MakeAround, place: Any, more: str
) -> None:
    world = make_around(built(dram(16) + place(tmp_path / "kv", more=more), environment={"KV_KEY": KEY}))
    await world.opened()
    keys = chain("a", 8)
    await world.seen(keys, shapes=(SHAPE,))
    await world.drained()
    for key in keys:
        world.store.dram.drop(key)
    prepared = await world.prepare(keys, shapes=(SHAPE,))
    assert len(prepared.loads) == 8
    world.check(keys, prepared)
    for path in (tmp_path / "kv").rglob("*"):
        is_plain = more == "" or more == FORMATS["zstd"]
        assert is_plain or not path.is_file() or content(keys[0])[:64] not in path.read_bytes()


@pytest.mark.parametrize("grid", ["int8", "fp8"])
async def test_a_quantized_tier_is_half_as_large(tmp_path: Path, make_around: MakeAround, grid: str) -> None:
    form = f", format: {{quantize: {grid}}}"
    world = make_around(built(dram(16) + nvme(tmp_path / "kv", more=form)))
    await world.opened()
    keys = chain("a", 4)
    await world.seen(keys, make=numbers, shapes=(SHAPE,))
    await world.drained()
    assert 0.5 < world.store.lower[0].index.used_bytes / (4 * PART_BYTES) < 0.7
    for key in keys:
        world.store.dram.drop(key)
    assert len((await world.prepare(keys, shapes=(SHAPE,))).loads) == 4


async def test_what_is_not_known_to_be_numbers_is_not_quantized(
    tmp_path: Path, make_around: MakeAround
) -> None:
    world = make_around(built(dram(16) + nvme(tmp_path / "kv", more=", format: {quantize: int8}")))
    await world.opened()
    keys = chain("a", 4)
    await world.seen(keys)
    await world.drained()
    for key in keys:
        world.store.dram.drop(key)
    prepared = await world.prepare(keys)
    assert len(prepared.loads) == 4
    world.check(keys, prepared)


def test_several_kvmanagers_have_equal_parts_and_directories_of_their_own(tmp_path: Path) -> None:
    more = "deployment: {replicas: {kvmanager: 4}}\nkv_cache: {tenant_hotset_gb: 1}\n"
    more += "security: {api_keys: [{tenant: acme, key_env: K, kv_quota_gb: 2}]}\n"
    classes = dram(64) + nvme(tmp_path / "kv", 256) + bucket(tmp_path / "far", 512)
    manifest = parse_manifest(f"{HEAD}storageClasses:\n{classes}{more}", "m.yaml")
    parts = [StoreParts.of(manifest, f"kvmanager-{at}", {}) for at in range(2)]
    assert len({one.owner for one in parts}) == 2
    for at, one in enumerate(parts):
        assert [part.capacity_gb for part in one.classes] == [gib(16), gib(64), gib(128)]
        assert one.classes[1].location == f"{tmp_path}/kv/kvmanager-{at}"
        assert one.classes[2].location == f"file://{tmp_path}/far"
        assert (one.hotset_gb, one.quota_gb) == (0.25, {TenantId("acme"): 0.5})


async def test_keys_are_rotated_and_retired(tmp_path: Path, make_around: MakeAround) -> None:
    environment = {"OLD": KEY, "NEW": "f0" * 32}
    old, new = "{id: k1, env: OLD}", "{id: k2, env: NEW}"
    keys = chain("a", 4)

    async def world_of(ring: str) -> World:
        more = f", format: {{encrypt: [{ring}]}}"
        world = make_around(built(dram(16) + nvme(tmp_path, more=more), environment=environment))
        await world.opened()
        return world

    first = await world_of(old)
    await first.seen(keys[:2])
    await first.drained()
    await first.store.aclose()
    both = await world_of(f"{old}, {new}")
    await both.seen(keys)
    await both.drained()
    both.forget_dram(keys)
    assert await both.loaded(keys) == [0, 1, 2, 3], "under either key"
    await both.store.aclose()
    last = await world_of(new)
    assert await last.loaded(keys) == [], "begins with blocks under the key that is gone"
    assert len(last.store.lower[0].index) == 2, "those are of no use any more"
    await last.seen(keys)
    await last.drained()
    last.forget_dram(keys)
    assert await last.loaded(keys) == [0, 1, 2, 3], "stored again, under the new key"


async def test_settings_reach_the_tiers(tmp_path: Path) -> None:
    more = (
        "kv_cache: {hot_keep_secs: 3, tenant_hotset_gb: 0.5}\n"
        "security: {api_keys: [{tenant: a, key: x, kv_quota_gb: 0.001}]}\n"
    )
    classes = dram(16) + bucket(tmp_path / "o").replace("through", "back") + nvme(tmp_path / "n")
    store = built(classes, more)
    try:
        lower = store.store.lower
        assert [one.name for one in lower] == ["disk", "far"], "fastest first"
        assert [one.settings.write_mode for one in lower] == [WriteMode.THROUGH, WriteMode.BACK]
        assert [one.settings.opens_later for one in lower] == [False, True]
        assert {one.settings.busy_bytes for one in lower} == {MIB}
        index = store.store.dram.index
        assert [index.add(key, None, MIB, TenantId("a")) for key in chain("a", 1)] == ["held"]
        assert [index.add(key, None, MIB, TenantId("a")) for key in chain("b", 1)] == ["no_room"]
        assert [index.add(key, None, 15 * MIB, TenantId("b")) for key in chain("c", 1)] == ["held"]
        assert index.make_room(MIB, TenantId("b")) == [], "hot"
    finally:
        await store.aclose()


@pytest.mark.parametrize("grid", ["none", "int8"])
async def test_the_format_of_dram_is_known_to_import_and_export(grid: str) -> None:
    store = built(dram(16).replace("}", f", format: {{quantize: {grid}}}}}"))
    try:
        assert store.quantize == grid
    finally:
        await store.aclose()


async def test_a_key_that_is_not_there_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as failed:
        built(dram(4) + nvme(tmp_path, more=FORMATS["encrypted"]))
    key = "storageClasses[1].format.encrypt[0]"
    assert failed.value.message == f"{key}: encryption key 'k1': $KV_KEY is not set"
    assert failed.value.key == ("storageClasses", 1, "format", "encrypt", 0)


async def test_dram_that_is_not_there_fails_the_start() -> None:
    with pytest.raises(StartFailed, match=r"^storage class 'fast' \(dram\): .*make its tier `dram` smaller"):
        built(dram(1 << 30))


async def test_a_directory_that_cannot_be_made_fails_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = built(dram(4) + nvme(tmp_path / "file" / "kv"))
    with pytest.raises(StartFailed, match=str(tmp_path / "file")):
        await store.store.open()
    await store.aclose()
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_but_a_bucket_needs_the_s3_package() -> None:
    """As on a machine that has only what `make up` installs."""
    blocked = "import sys; sys.modules['obstore'] = None; import llmserve.kvstore.__main__"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
