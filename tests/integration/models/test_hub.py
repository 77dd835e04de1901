"""Models of the hub: the hub's own client and a server that speaks the hub's protocol."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmserve.config.schema import ModelSpec
from llmserve.core.errors import LLMServeError, ModelNotFound, StorageFull, Unavailable
from llmserve.models import hub as hub_module
from llmserve.models import resolve
from llmserve.models.directory import model_identity
from llmserve.models.files import DigestCache
from llmserve.models.hub import cache_folder, cached_snapshot, download, expected_sha256
from llmserve.models.resolve import PreparationStage, survey
from llmserve.models.search import HubModel, search_hub
from tests.support.hub_server import COMMIT, HubServer, hub_server

WEIGHTS = "model.safetensors"
SPEC = ModelSpec.model_validate({"source": "hub:org/name"})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server(tmp_path / "hub", monkeypatch) as server:
        server.files = {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "README.md": b"for people",
            "onnx/model.onnx": b"x",
            WEIGHTS: bytes(range(256)) * 400,
        }
        yield server


def blobs(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "models--org--name" / "blobs"


def pulled(said: list[str] | None = None, revision: str | None = None) -> Path:
    return download("org/name", revision, (said if said is not None else []).append)


def refused(kind: type[LLMServeError] = ModelNotFound, revision: str | None = None) -> str:
    with pytest.raises(kind) as caught:
        pulled(revision=revision)
    return caught.value.message


def test_a_model_is_downloaded_and_its_contents_are_the_identity(hub: HubServer, tmp_path: Path) -> None:
    said: list[str] = []
    spec = ModelSpec.model_validate({"source": "hub:org/name", "revision": "v1"})
    model = resolve(spec, tmp_path / "cache", said.append)
    assert model.path == tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT
    assert sorted(file.name for file in model.path.iterdir()) == ["config.json", WEIGHTS, "tokenizer.json"]
    assert (model.path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert expected_sha256(model.path / WEIGHTS) == hub.sha256(WEIGHTS)
    assert expected_sha256(model.path / "config.json") is None
    assert model.identity == model_identity(model.path, DigestCache(tmp_path / "other.json"))
    assert said == ["downloading org/name at v1 from the hub", "computing the digest of the model"]
    assert "GET /api/models/org/name/revision/v1" in hub.asked
    hub.ranges.clear()
    assert resolve(spec, tmp_path / "cache") == model
    assert hub.ranges == [], "what is there is not downloaded again"


def test_a_broken_download_goes_on_where_it_stopped(hub: HubServer, tmp_path: Path) -> None:
    hub.breaks_after = 1000
    assert "is not to be had from the hub" in refused()
    partial = blobs(tmp_path) / f"{hub.sha256(WEIGHTS)}.incomplete"
    assert partial.stat().st_size == 1000
    assert survey(SPEC, tmp_path / "cache").stage is PreparationStage.TO_DOWNLOAD, "it does not look whole"
    hub.breaks_after = None
    hub.ranges.clear()
    said: list[str] = []
    path = pulled(said)
    assert hub.ranges == [f"{WEIGHTS} bytes=1000-"]
    assert (path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert said[1] == "going on with a download of which 0.00 GB are here"
    assert not partial.exists()


def test_a_file_with_another_checksum_is_named_and_what_is_right_stays(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_THREADS", 1)
    hub.files = {"other.safetensors": b"right", **hub.files}
    hub.sent[WEIGHTS] = b"x" * len(hub.files[WEIGHTS])
    said = refused(LLMServeError)
    assert f"{WEIGHTS} came with the SHA-256 " in said
    assert f"but the hub says {hub.sha256(WEIGHTS)}: it was thrown away" in said
    assert [file.name for file in blobs(tmp_path).iterdir()] == [hub.sha256("other.safetensors")]
    hub.sent.clear()
    assert (pulled() / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert hub.ranges.count("other.safetensors all") == 1


def test_a_file_that_is_damaged_later_is_named(hub: HubServer, tmp_path: Path) -> None:
    model = resolve(SPEC, tmp_path / "cache")
    blob = (model.path / WEIGHTS).resolve()
    blob.write_bytes(b"damaged")
    with pytest.raises(LLMServeError, match=rf"{WEIGHTS} is damaged: .* the hub says {blob.name}"):
        resolve(SPEC, tmp_path / "cache")
    blob.unlink()
    assert resolve(SPEC, tmp_path / "cache") == model


def test_a_disk_that_is_too_small_is_said_before_the_download(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(hub.files[WEIGHTS])
    usage = SimpleNamespace(free=(64 << 20) + size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = refused(StorageFull)
    assert f"0.00 GB are to be downloaded, and 0.07 GB are free in {tmp_path / 'hub'}: make room" in said
    assert hub.ranges == []
    usage.free += 1
    assert pulled().is_dir()


def test_a_disk_that_gets_full_leaves_a_part_that_the_next_try_goes_on_with(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write is short, as the last one before there is no room left."""
    real, partial = os.write, blobs(tmp_path) / f"{hub.sha256(WEIGHTS)}.incomplete"

    def full(fd: int, data: memoryview) -> int:
        if partial.stat().st_size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:400])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert f"{tmp_path / 'hub'} is full: make room, and the next try goes on" in refused(StorageFull)
    assert partial.stat().st_size == 400
    assert survey(SPEC, tmp_path / "cache").stage is PreparationStage.TO_DOWNLOAD
    path = pulled()
    assert hub.ranges[-1] == f"{WEIGHTS} bytes=400-"
    assert (path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["pytorch_model.bin"], r"its weights are pickles \(pytorch_model\.bin\), which can run any code"),
        (["consolidated.00.pth"], r"its weights are pickles"),
        (["m.Q4.gguf"], r"has GGUF files alone, such as m\.Q4\.gguf"),
        (["onnx/model.safetensors"], "holds no weights"),
    ],
)
def test_a_model_without_safetensors_is_refused_and_not_downloaded(
    hub: HubServer, tmp_path: Path, files: list[str], why: str
) -> None:
    hub.files = {"config.json": b"{}", "tokenizer.json": b"{}"} | dict.fromkeys(files, b"x")
    with pytest.raises(ModelNotFound, match=why):
        resolve(SPEC, tmp_path / "cache")
    assert hub.ranges == []


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((403, "GatedRepo"), "accept its terms on the hub and set HF_TOKEN"),
        ((404, "RevisionNotFound"), "has no revision 'v1' on the hub"),
        ((404, "RepoNotFound"), "there is no such model on the hub, or it is private"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: HubServer, refusal: tuple[int, str], said: str) -> None:
    hub.refusal = refusal
    assert said in refused(revision="v1")


def test_a_name_that_no_hub_has(hub: HubServer) -> None:
    with pytest.raises(ModelNotFound, match="there is no such model on the hub"):
        download("org/na..me", None, lambda text: None)


def test_without_a_network_the_cache_serves(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    said = refused()
    assert "is not to be had from the hub and its cache: " in said
    assert "dir:/PATH" in said
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    path = pulled()
    hub.refusal = (500, "")
    assert pulled() == path
    (path / "tokenizer.json").unlink()
    assert "is not to be had from the hub and its cache" in refused(), "it is not whole"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "from the hub's cache (HF_HUB_OFFLINE is set): " in refused()


def test_the_cache_is_asked_without_a_network(hub: HubServer) -> None:
    assert cached_snapshot("org/name", None) is None
    path = pulled()
    hub.asked.clear()
    assert cached_snapshot("org/name", None) == cached_snapshot("org/name", COMMIT) == path
    assert cached_snapshot("org/name", "v2") is None
    assert cached_snapshot("org/name", None, "README.md") is None
    assert hub.asked == []


def test_where_the_hub_client_keeps_models(hub: HubServer, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "hub"


def test_a_search_names_models_with_safetensors(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search_hub("name", 5) == [HubModel("org/name", 7, gated=False)]
    assert search_hub("other", 5) == []
    hub.refusal = (500, "")
    with pytest.raises(Unavailable, match=r"the hub cannot be asked: .*500"):
        search_hub("name", 5)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="the hub cannot be asked: HF_HUB_OFFLINE is set"):
        search_hub("name", 5)
