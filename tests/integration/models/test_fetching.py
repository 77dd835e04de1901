"""Several processes of a host that fetch adapters, and what is left when one of them is killed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmserve.core.adapters import AdapterTier, LoraShape
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters import AdapterCache, open_adapter_cache
from llmserve.models.adapters.cache import DISK_VARIABLE, DRAM_VARIABLE
from tests.integration.models.fetching import MANIFEST
from tests.integration.models.helper import StartHelper, helpers
from tests.support.adapters import digest_of, random_adapter, tiny_base

CHECKING = "checking adapter "


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return random_adapter(tmp_path / "adapter", tiny_base(tmp_path / "base"), seed=1)


@pytest.fixture
def digest(adapter: Path) -> AdapterDigest:
    return digest_of(adapter)


@pytest.fixture
def fetch(tmp_path: Path, adapter: Path) -> Iterator[StartHelper]:
    with helpers(
        "fetching.py", tmp_path / "cache" / "adapters", tmp_path / "memory", f"dir:{adapter}"
    ) as begin:
        yield begin


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], AdapterCache]:
    monkeypatch.setenv(DISK_VARIABLE, str(tmp_path / "cache" / "adapters"))
    monkeypatch.setenv(DRAM_VARIABLE, str(tmp_path / "memory"))
    return lambda: open_adapter_cache(MANIFEST, LoraShape(4, 16), None)


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "adapters").iterdir() if path.is_dir())


def test_of_two_processes_at_once_one_fetches(fetch: StartHelper, digest: AdapterDigest) -> None:
    first = fetch(digest)
    first.until(CHECKING)
    second = fetch(digest)
    assert second.until("waiting for another process that ") == "fetches an adapter"
    first.go_on()
    assert first.until("done: ") == second.until("done: ") == digest
    assert not any(line.startswith("fetching") for line in second.said)


def test_a_process_that_is_killed_in_the_middle_leaves_nothing_to_the_next(
    fetch: StartHelper, digest: AdapterDigest, opened: Callable[[], AdapterCache], tmp_path: Path
) -> None:
    first = fetch(digest)
    first.until(CHECKING)
    opened().close()
    (partial,) = folders(tmp_path)
    assert partial.startswith(".partial-"), "it lives, so the start of another process leaves it alone"
    first.kill()
    cache = opened()
    assert folders(tmp_path) == []
    assert cache.find(digest) is None
    second = fetch(digest)
    second.until(CHECKING)
    second.go_on()
    assert second.until("done: ") == digest


def test_a_process_that_waits_goes_on_when_the_one_before_is_killed(
    fetch: StartHelper, digest: AdapterDigest, tmp_path: Path
) -> None:
    first, second = fetch(digest), fetch(digest)
    first.until("")
    second.until("")
    fetching, waiting = (first, second) if first.said[0].startswith("fetching") else (second, first)
    fetching.until(CHECKING)
    fetching.kill()
    waiting.until(CHECKING)
    waiting.go_on()
    assert waiting.until("done: ") == digest
    assert folders(tmp_path) == [digest]


def test_what_a_process_holds_stays_until_it_dies(
    fetch: StartHelper, digest: AdapterDigest, opened: Callable[[], AdapterCache], tmp_path: Path
) -> None:
    holder = fetch()
    holder.until(CHECKING)
    holder.go_on()
    holder.until("done: ")
    cache = opened()
    cache.remove(digest)
    near = cache.find(digest)
    assert near is not None
    assert near.tier is AdapterTier.DRAM
    holder.kill()
    cache.remove(digest)
    assert cache.find(digest) is None
    assert folders(tmp_path) == []
    assert not (tmp_path / "memory" / digest).exists()
