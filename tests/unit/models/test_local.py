"""The models on this machine, in a hub's cache and a cache of converted ones that are made of plain files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.core.errors import DeadlineExceeded, NotFound
from llmserve.models import local
from llmserve.models.converted import ConversionRecord
from llmserve.models.files import file_lock, silent
from llmserve.models.local import local_model, local_models, remove

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Snapshot = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "tiny-0123-v1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(50))
    ConversionRecord("ab", 1, {}).write(folder)
    (tmp_path / "cache" / "unfinished-0123-v1").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    """Makes a snapshot of org/name with these files."""
    hub = tmp_path / "hub"
    monkeypatch.setattr(local, "cache_folder", lambda: hub)
    monkeypatch.setattr(local, "repo_lock", lambda name: tmp_path / f"{name.replace('/', '-')}.lock")

    def make(*names: str, commit: str = COMMIT, ref: str = "main") -> Path:
        repo = hub / "models--org--name"
        for folder in ("blobs", f"snapshots/{commit}", "refs"):
            (repo / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (repo / "blobs" / f"of-{name}").write_text("{}")
            (repo / "snapshots" / commit / name).symlink_to(repo / "blobs" / f"of-{name}")
        (repo / "refs" / ref).write_text(commit)
        return repo

    return make


WHOLE = ("config.json", "tokenizer.json", "model.safetensors")


def test_all_are_listed_by_name(cache: Path, snapshot: Snapshot) -> None:
    repo = snapshot(*WHOLE)
    snapshot(*WHOLE, commit="f" * 40, ref="pr")
    of_hub, converted = local_models(cache)
    assert (of_hub.name, of_hub.source, of_hub.folder, of_hub.missing) == (
        "org/name",
        "hub:org/name",
        repo,
        "",
    )
    assert of_hub.revisions == {COMMIT: ("main",), "f" * 40: ("pr",)}
    assert of_hub.size_bytes == 2 * 3 + 40 * 2, "a file of two revisions counts once"
    assert (converted.name, converted.source, converted.missing) == ("tiny-0123-v1", "", "")
    assert converted.size_bytes > 50


def test_one_that_is_not_whole_says_why(cache: Path, snapshot: Snapshot) -> None:
    repo = snapshot("config.json", "tokenizer.json")
    assert "holds no weights" in local_model("org/name", cache).missing
    assert local_model("org/name", cache).note == ""
    (repo / "blobs" / "ab.incomplete").write_bytes(bytes(20_000_000))
    assert local_model("org/name", cache).missing == "0.02 GB of a file are here: the next pull goes on"
    snapshot(*WHOLE, commit="f" * 40)
    assert local_model("hub:org/name", cache).missing == "", "one that is whole is enough"


def test_one_without_a_tokenizer_says_what_it_is_good_for(cache: Path, snapshot: Snapshot) -> None:
    """It is a head, or a download that was interrupted."""
    snapshot("config.json", "model.safetensors")
    of_hub, converted = local_models(cache)
    assert (of_hub.missing, of_hub.note) == ("", "no tokenizer: only as a draft or head")
    assert converted.note == ""
    snapshot(*WHOLE, commit="f" * 40)
    assert local_model("org/name", cache).note == "", "one with a tokenizer is enough"


def test_a_link_to_a_file_that_is_gone_is_no_weights(cache: Path, snapshot: Snapshot) -> None:
    repo = snapshot(*WHOLE)
    (repo / "blobs" / "of-model.safetensors").unlink()
    assert "holds no weights" in local_model("org/name", cache).missing


def test_a_download_that_has_just_begun(cache: Path, snapshot: Snapshot) -> None:
    repo = snapshot()
    (repo / "snapshots" / COMMIT).rmdir()
    assert local_model("org/name", cache).missing == "nothing of it is here"


@pytest.mark.parametrize("name", ["org/name", "tiny-0123-v1"])
def test_a_removed_one_is_gone_and_the_other_stays(cache: Path, snapshot: Snapshot, name: str) -> None:
    snapshot(*WHOLE)
    model = local_model(name, cache)
    remove(model)
    assert not model.folder.exists()
    assert [one.name for one in local_models(cache)] == [
        other for other in ("org/name", "tiny-0123-v1") if other != name
    ]
    assert not list(model.folder.parent.glob(".removing-*"))
    with pytest.raises(NotFound, match=f"there is no model '{name}' here"):
        local_model(name, cache)


def test_one_that_is_being_prepared_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_LOCK_SECONDS", 0.0)
    monkeypatch.setattr(local, "cache_folder", lambda: cache / "no-hub")
    model = local_model("tiny-0123-v1", cache)
    with (
        file_lock(model.lock, silent, "converts it", 0),
        pytest.raises(DeadlineExceeded, match="prepares tiny"),
    ):
        remove(model)
    assert model.folder.is_dir()
