"""The adapters of a host, from a source to disk and memory."""

import json
import os
import shutil
from pathlib import Path

import pytest

from llmserve.core.adapters import BASE_MODEL, AdapterTier
from llmserve.core.errors import InvalidRequest, LLMServeError, ModelNotFound, NotFound, Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters.cache import disk_folder, dram_folder
from tests.support.adapters import CONFIG, SPOILERS, WEIGHTS, AdapterShape, digest_of, random_adapter
from tests.unit.models.adapters.conftest import OpenCache, source_of

DISK, DRAM = AdapterTier.DISK, AdapterTier.DRAM
UNKNOWN = AdapterDigest("0" * 64)


def test_an_adapter_is_fetched_checked_and_named(adapter: Path, open_cache: OpenCache) -> None:
    said = list[str]()
    cache = open_cache()
    found = cache.fetch(source_of(adapter), progress=said.append)
    assert (found.rank, found.tier, found.path.name) == (8, DISK, found.digest)
    assert found.size_bytes == sum((found.path / name).stat().st_size for name in (CONFIG, WEIGHTS))
    assert (found.path / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    assert cache.find(found.digest) == found
    assert [text.partition(" adapter ")[0] for text in said] == ["fetching", "checking"]


def test_engines_read_only_keys_that_were_checked(adapter: Path, open_cache: OpenCache) -> None:
    keys = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**keys, "vllm_lora_scaling_factor": 9, "unseen": {"a": 1}}))
    found = open_cache().fetch(source_of(adapter))
    written = json.loads((found.path / CONFIG).read_text())
    assert written.keys() == {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "bias",
        "fan_in_fan_out",
    }
    assert written["target_modules"] == sorted(keys["target_modules"])
    assert digest_of(found.path) == found.digest


def test_a_known_version_is_had_without_its_source(adapter: Path, open_cache: OpenCache) -> None:
    digest = open_cache().fetch(source_of(adapter)).digest
    shutil.rmtree(adapter)
    assert open_cache().fetch(source_of(adapter), digest).digest == digest
    with pytest.raises(ModelNotFound, match="is not a directory on this host"):
        open_cache().fetch(source_of(adapter))


def test_a_known_version_is_reused_if_this_model_can_run_it(adapter: Path, open_cache: OpenCache) -> None:
    cache = open_cache()
    with pytest.raises(NotFound):
        cache.reuse(source_of(adapter), UNKNOWN)
    fetched = cache.fetch(source_of(adapter))
    assert open_cache().reuse(source_of(adapter), fetched.digest) == fetched
    with pytest.raises(InvalidRequest, match=f"adapter 'dir:{adapter}': .*rank"):
        open_cache(max_rank=1).reuse(source_of(adapter), fetched.digest)


def test_a_source_with_other_contents_is_not_that_version(
    adapter: Path, base: Path, open_cache: OpenCache
) -> None:
    cache = open_cache()
    digest = cache.fetch(source_of(adapter)).digest
    cache.remove(digest)
    random_adapter(adapter, base, seed=2)
    with pytest.raises(ModelNotFound, match=f"have changed: they are version .*, not {digest}"):
        cache.fetch(source_of(adapter), digest)
    assert cache.fetch(source_of(adapter)).digest != digest


def test_two_sources_of_the_same_weights_are_one(adapter: Path, open_cache: OpenCache) -> None:
    shutil.copytree(adapter, adapter.parent / "again")
    cache = open_cache()
    first, second = cache.fetch(source_of(adapter)), cache.fetch(source_of(adapter.parent / "again"))
    assert first == second


@pytest.mark.parametrize(
    ("spoiler", "kind", "said"),
    [
        ("nan", InvalidRequest, "NaN or infinite"),
        ("missing tensor", InvalidRequest, "has no lora_B"),
        ("other base", InvalidRequest, "another model"),
        ("truncated", InvalidRequest, "was cut off"),
        ("pickle", InvalidRequest, "adapter_model.bin is a pickle, which can run any code"),
        ("no config", ModelNotFound, "there is no adapter_config.json"),
    ],
)
def test_a_spoiled_adapter_leaves_nothing(
    adapter: Path, open_cache: OpenCache, tmp_path: Path, spoiler: str, kind: type[LLMServeError], said: str
) -> None:
    SPOILERS[spoiler](adapter)
    with pytest.raises(kind) as caught:
        open_cache().fetch(source_of(adapter))
    assert said in caught.value.message
    assert f"adapter 'dir:{adapter}'" in caught.value.message
    assert [path for path in (tmp_path / "cache" / "adapters").iterdir() if path.is_dir()] == []


def test_a_link_among_the_files_leads_nowhere_else(
    adapter: Path, base: Path, tmp_path: Path, open_cache: OpenCache
) -> None:
    secret = random_adapter(tmp_path / "secret", base, seed=3)
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).symlink_to(secret / WEIGHTS)
    with pytest.raises(InvalidRequest, match="is a link out of what is allowed"):
        open_cache().fetch(source_of(adapter))
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).symlink_to(random_adapter(adapter.parent / "two", base, seed=3) / WEIGHTS)
    open_cache().fetch(source_of(adapter))


def test_a_pipe_in_place_of_a_file_is_not_waited_for(adapter: Path, open_cache: OpenCache) -> None:
    (adapter / WEIGHTS).unlink()
    os.mkfifo(adapter / WEIGHTS)
    with pytest.raises(InvalidRequest, match="is not a file"):
        open_cache().fetch(source_of(adapter))


def test_an_adapter_that_can_never_fit_is_refused(adapter: Path, open_cache: OpenCache) -> None:
    with pytest.raises(InvalidRequest, match=r"bytes; lora\.disk_gb is"):
        open_cache(disk_gb=1e-5).fetch(source_of(adapter))


def test_an_adapter_comes_to_memory_for_all_processes(
    adapter: Path, open_cache: OpenCache, tmp_path: Path
) -> None:
    cache, other = open_cache(), open_cache()
    on_disk = cache.fetch(source_of(adapter))
    near = cache.bring_to_dram(on_disk.digest)
    assert (near.tier, near.path.parent, near.digest) == (DRAM, tmp_path / "memory", on_disk.digest)
    for name in (CONFIG, WEIGHTS):
        assert (near.path / name).read_bytes() == (on_disk.path / name).read_bytes()
    assert other.find(near.digest) == near
    assert other.bring_to_dram(near.digest) == near


def test_removing_spares_what_others_hold(adapter: Path, open_cache: OpenCache) -> None:
    cache, other = open_cache(), open_cache()
    near = cache.bring_to_dram(cache.fetch(source_of(adapter)).digest)
    other.remove(near.digest)
    assert other.find(near.digest) == near, "the first process holds both"
    cache.remove(near.digest)
    assert other.find(near.digest) is None


def test_what_was_damaged_on_disk_is_seen_and_removed(adapter: Path, open_cache: OpenCache) -> None:
    cache = open_cache()
    found = cache.fetch(source_of(adapter))
    (found.path / WEIGHTS).chmod(0o644)
    with (found.path / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(NotFound, match=f"{WEIGHTS} in .* was damaged"):
        cache.bring_to_dram(found.digest)
    assert cache.find(found.digest) is None
    again = cache.fetch(source_of(adapter), found.digest)
    assert cache.bring_to_dram(again.digest).tier is DRAM


def test_without_memory_for_adapters_they_stay_on_disk(adapter: Path, open_cache: OpenCache) -> None:
    cache = open_cache(dram_gb=0)
    digest = cache.fetch(source_of(adapter)).digest
    with pytest.raises(Unavailable, match=r"lora\.dram_gb is 0"):
        cache.bring_to_dram(digest)
    with pytest.raises(NotFound):
        cache.hold(digest, DRAM)
    cache.release(digest, DRAM)


def test_what_does_not_fit_into_memory_is_said(adapter: Path, open_cache: OpenCache) -> None:
    cache = open_cache(dram_gb=1e-5)
    digest = cache.fetch(source_of(adapter)).digest
    with pytest.raises(Unavailable, match=r"lora\.dram_gb"):
        cache.bring_to_dram(digest)
    assert cache.find(digest) is not None


def test_what_is_unknown_is_not_found(open_cache: OpenCache) -> None:
    cache = open_cache()
    assert cache.find(UNKNOWN) is None
    for tier in (DISK, DRAM):
        with pytest.raises(NotFound):
            cache.hold(UNKNOWN, tier)
        cache.release(UNKNOWN, tier)
    cache.remove(UNKNOWN)
    with pytest.raises(NotFound):
        cache.bring_to_dram(UNKNOWN)
    assert cache.find(BASE_MODEL) is None


def test_ranks_are_checked_against_the_engine(adapter: Path, base: Path, open_cache: OpenCache) -> None:
    random_adapter(adapter, base, 1, AdapterShape(rank=32))
    with pytest.raises(InvalidRequest, match="rank 32 is over 16"):
        open_cache().fetch(source_of(adapter))


@pytest.mark.parametrize("lora", [{"max_rank": 1}, {"target_modules": ["q_proj"]}])
def test_what_is_there_already_must_fit_this_engine(
    adapter: Path, open_cache: OpenCache, lora: dict[str, object]
) -> None:
    """Other limits held when it was fetched, or it was fetched for another model."""
    digest = open_cache().fetch(source_of(adapter)).digest
    cache = open_cache(**lora)
    with pytest.raises(InvalidRequest, match=rf"adapter 'dir:{adapter}': .*\(lora\.{next(iter(lora))}"):
        cache.fetch(source_of(adapter), digest)


def test_pods_have_a_disk_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_CACHE_DIR", "/shared")
    monkeypatch.setenv("LLMSERVE_ADAPTER_DISK", "/of-this-pod")
    assert disk_folder() == Path("/of-this-pod")
    monkeypatch.delenv("LLMSERVE_ADAPTER_DISK")
    assert disk_folder() == Path("/shared/adapters")


def test_memory_is_where_the_supervisor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_ADAPTER_DRAM", "/dev/shm/of-this-cluster")
    assert dram_folder() == Path("/dev/shm/of-this-cluster")
    monkeypatch.delenv("LLMSERVE_ADAPTER_DRAM")
    assert dram_folder() == Path(f"/dev/shm/llmserve-adapters-{os.geteuid()}")
