"""An adapter of the hub, with a fake hub client."""

import errno
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmserve.config.adapter_source import parse_adapter_source
from llmserve.core.errors import InvalidRequest, LLMServeError, ModelNotFound, Unavailable
from llmserve.models.adapters.hub import HubPlace
from tests.support.adapters import CONFIG, SPOILERS, WEIGHTS
from tests.unit.models.adapters.conftest import OpenCache

COMMIT = "0123456789abcdef"


@dataclass
class Hub:
    """folder: what the hub has. cached: its client's cache. error: what the client raises, when it is asked
    for the files of a commit, and when it downloads."""

    folder: Path
    cached: Path | None = None
    error: Exception | None = None
    download_error: Exception | None = None
    asked: list[str] = field(default_factory=list)

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        self.asked.append(f"{repo}@{revision}")
        if self.error is not None:
            raise self.error
        files = [
            SimpleNamespace(rfilename=path.name, size=path.stat().st_size) for path in self.folder.iterdir()
        ]
        return SimpleNamespace(sha=COMMIT, siblings=[*files, SimpleNamespace(rfilename="x/", size=None)])

    def hf_hub_download(self, repo: str, name: str, *, revision: str, local_dir: Path) -> str:
        self.asked.append(f"{name}@{revision}")
        if self.download_error is not None:
            raise self.download_error
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / ".cache").mkdir(exist_ok=True)
        return str(shutil.copyfile(self.folder / name, local_dir / name))

    def try_to_load_from_cache(self, repo: str, name: str, revision: str | None) -> object:
        found = self.cached / name if self.cached is not None else None
        return str(found) if found is not None and found.exists() else None


@pytest.fixture
def hub(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub, module = Hub(adapter), ModuleType("huggingface_hub")
    module.HfApi = lambda: hub  # type: ignore[attr-defined]
    module.try_to_load_from_cache = hub.try_to_load_from_cache  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return hub


def named(name: str, text: str = "") -> Exception:
    """The hub client's errors are known by the names of their classes."""
    make: Callable[[str], Exception] = type(name, (Exception,), {})
    return make(text)


def test_all_files_come_from_one_commit(hub: Hub, adapter: Path, open_cache: OpenCache) -> None:
    found = open_cache().fetch(parse_adapter_source("hub:org/name@v1"))
    assert (found.path / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    assert hub.asked == ["org/name@v1", f"{CONFIG}@{COMMIT}", f"{WEIGHTS}@{COMMIT}"]
    assert {path.name for path in found.path.iterdir()} == {CONFIG, WEIGHTS, "record.json"}


def test_without_a_revision_the_default_branch_is_asked_for(hub: Hub) -> None:
    assert HubPlace("org/name", "").size_bytes(CONFIG) is not None
    assert hub.asked == ["org/name@None"]


def test_nothing_is_downloaded_of_a_repository_with_a_pickle(hub: Hub, open_cache: OpenCache) -> None:
    SPOILERS["pickle"](hub.folder)
    with pytest.raises(InvalidRequest, match=r"adapter_model\.bin is a pickle"):
        open_cache().fetch(parse_adapter_source("hub:org/name"))
    assert hub.asked == ["org/name@None"]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (named("GatedRepoError"), ModelNotFound, "is gated; accept its terms"),
        (named("RepositoryNotFoundError"), ModelNotFound, "there is no such model on the hub"),
        (named("RevisionNotFoundError"), ModelNotFound, "has no revision 'v1' on the hub"),
        (named("ConnectError", "no route to host\nmore"), Unavailable, "the hub is away: no route to host"),
        (named("Odd"), Unavailable, "the hub is away: Odd"),
    ],
)
def test_what_the_hub_says_is_said(
    hub: Hub, open_cache: OpenCache, error: Exception, kind: type[LLMServeError], said: str
) -> None:
    hub.error = error
    with pytest.raises(kind) as caught:
        open_cache().fetch(parse_adapter_source("hub:org/name@v1"))
    assert caught.value.message.startswith(f"adapter 'hub:org/name@v1': {said}")


def test_when_the_hub_is_away_the_cache_of_its_client_is_used(hub: Hub, open_cache: OpenCache) -> None:
    hub.error, hub.cached = named("ConnectError"), hub.folder
    assert open_cache().fetch(parse_adapter_source("hub:org/name")).rank == 8


def test_what_the_hub_refuses_does_not_come_from_the_cache(hub: Hub, open_cache: OpenCache) -> None:
    hub.error, hub.cached = named("GatedRepoError"), hub.folder
    with pytest.raises(ModelNotFound, match="gated"):
        open_cache().fetch(parse_adapter_source("hub:org/name"))


def test_offline_only_the_cache_is_used(
    hub: Hub, open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.error = named("OfflineModeIsEnabled")
    with pytest.raises(ModelNotFound, match="not in the hub's cache, and HF_HUB_OFFLINE is set"):
        open_cache().fetch(parse_adapter_source("hub:org/name"))
    hub.cached = hub.folder
    assert open_cache().fetch(parse_adapter_source("hub:org/name")).rank == 8


def test_a_download_that_breaks_off_is_another_try_away(
    hub: Hub, open_cache: OpenCache, tmp_path: Path
) -> None:
    hub.download_error = named("ReadError", "the connection broke")
    with pytest.raises(Unavailable, match="the hub is away: the connection broke"):
        open_cache().fetch(parse_adapter_source("hub:org/name"))
    assert [path for path in (tmp_path / "cache" / "adapters").iterdir() if path.is_dir()] == []


def test_a_disk_that_gets_full_is_not_the_hubs_fault(hub: Hub, open_cache: OpenCache) -> None:
    hub.download_error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(Unavailable, match="no room for an adapter"):
        open_cache().fetch(parse_adapter_source("hub:org/name"))
