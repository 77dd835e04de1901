"""A model of the hub, with a fake hub client."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmserve.config.schema import ModelSpec
from llmserve.core.errors import ModelNotFound
from llmserve.models import resolve
from llmserve.models.directory import model_identity
from llmserve.models.files import DigestCache
from llmserve.models.sources import cache_folder, cached_snapshot, download

COMMIT = "0123456789abcdef"


class Hub:
    """weights: the file of weights that the model has."""

    def __init__(self, folder: Path) -> None:
        self.snapshot = folder / COMMIT
        self.weights = "model.safetensors"
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []

    def snapshot_download(self, repo: str, **options: Any) -> str:
        self.asked.append({"repo": repo, **options})
        if self.error is not None:
            raise self.error
        self.snapshot.mkdir(exist_ok=True)
        names = ["config.json", "tokenizer.json"]
        names += [self.weights] if any(Path(self.weights).match(p) for p in options["allow_patterns"]) else []
        for name in names:
            (self.snapshot / name).write_text("{}")
        return str(self.snapshot)

    def try_to_load_from_cache(self, repo: str, filename: str, revision: str | None) -> object:
        """The client's word for a file that the model does not have is an object of its own."""
        if repo == "org/without-config":
            return object()
        path = self.snapshot / filename
        return str(path) if repo == "org/name" and revision in (None, "v1") and path.exists() else None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub, module = Hub(tmp_path), ModuleType("huggingface_hub")
    module.snapshot_download = hub.snapshot_download  # type: ignore[attr-defined]
    module.try_to_load_from_cache = hub.try_to_load_from_cache  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return hub


def named(name: str, text: str = "") -> Exception:
    """The hub client's errors are known by the names of their classes."""
    make: Callable[[str], Exception] = type(name, (Exception,), {})
    return make(text)


def failure(hub: Hub, error: Exception, revision: str | None = None) -> str:
    hub.error = error
    with pytest.raises(ModelNotFound) as caught:
        download("org/name", revision, lambda text: None)
    return caught.value.message


def test_the_asked_revision_is_downloaded_and_its_contents_are_the_identity(hub: Hub, tmp_path: Path) -> None:
    spec = ModelSpec.model_validate({"source": "hub:org/name", "revision": "v1"})
    said = list[str]()
    model = resolve(spec, tmp_path / "cache", said.append)
    assert (model.path, model.path.name, model.name) == (hub.snapshot, COMMIT, "name")
    assert model.identity == model_identity(hub.snapshot, DigestCache(tmp_path / "other.json"))
    assert [(asked["repo"], asked["revision"]) for asked in hub.asked] == [("org/name", "v1")]
    assert said == ["downloading org/name at v1 from the hub", "computing the digest of the model"]


def test_other_weights_are_fetched_only_without_safetensors(hub: Hub) -> None:
    hub.weights = "pytorch_model.bin"
    assert (download("org/name", None, lambda text: None) / "pytorch_model.bin").exists()
    assert ["*.safetensors" in asked["allow_patterns"] for asked in hub.asked] == [True, False]


def test_an_incomplete_download_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.weights = "model.onnx"
    with pytest.raises(ModelNotFound, match="holds no weights"):
        resolve(ModelSpec.model_validate({"source": "hub:org/name"}), tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GatedRepoError", "accept its terms on the hub and set HF_TOKEN"),
        ("RevisionNotFoundError", "has no revision 'v1' on the hub"),
        ("RepositoryNotFoundError", "there is no such model on the hub, or it is private"),
        ("HFValidationError", "there is no such model on the hub"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: Hub, name: str, said: str) -> None:
    assert said in failure(hub, named(name), "v1")


def test_without_a_network_it_is_said_what_was_tried_and_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = failure(hub, named("ConnectionError", "no route to host\nand a long explanation"))
    assert "is not to be had from the hub and its cache: no route to host. Connect" in said
    assert "dir:/PATH" in said
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "from the hub's cache (HF_HUB_OFFLINE is set): Odd." in failure(hub, named("Odd"))


def test_the_cache_is_asked_without_a_network(hub: Hub) -> None:
    assert cached_snapshot("org/name", None) is None
    download("org/name", None, lambda text: None)
    hub.asked.clear()
    assert cached_snapshot("org/name", "v1") == hub.snapshot
    assert cached_snapshot("org/name", "v2") is None
    assert cached_snapshot("org/without-config", None) is None
    assert hub.asked == []


def test_without_the_hub_client_nothing_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # an ImportError
    assert cached_snapshot("org/name", None) is None
    assert cache_folder() == Path.home() / ".cache" / "huggingface" / "hub"


def test_where_the_hub_client_keeps_models(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = ModuleType("huggingface_hub.constants")
    constants.HF_HUB_CACHE = "/models"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, constants.__name__, constants)
    assert cache_folder() == Path("/models")
