"""A tiny base model, a right adapter for it, and the cache of a host."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmserve.config.adapter_source import AdapterSource, parse_adapter_source
from llmserve.config.schema import Lora, Manifest
from llmserve.core.adapters import LoraShape
from llmserve.models.adapters import AdapterCache, open_adapter_cache
from tests.support.adapters import random_adapter, tiny_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return random_adapter(tmp_path / "adapters" / "one", base, seed=1)


def source_of(folder: Path) -> AdapterSource:
    return parse_adapter_source(f"dir:{folder}")


OpenCache = Callable[..., AdapterCache]


@pytest.fixture
def open_cache(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenCache]:
    """Opens the cache of this host as a process does. Arguments: keys of section `lora`."""
    monkeypatch.setenv("LLMSERVE_ADAPTER_DISK", str(tmp_path / "cache" / "adapters"))
    monkeypatch.setenv("LLMSERVE_ADAPTER_DRAM", str(tmp_path / "memory"))
    opened: list[AdapterCache] = []

    def make(**lora: object) -> AdapterCache:
        settings = {"allowed_sources": [f"dir:{tmp_path}/adapters"], **lora}
        models = {"primary": {"source": "hub:o/n"}}
        manifest = Manifest.model_validate({"kind": "LLMServe", "models": models, "lora": settings})
        wanted = Lora.model_validate(settings)
        shape = LoraShape(wanted.slots, wanted.max_rank, wanted.target_modules or ())
        opened.append(open_adapter_cache(manifest, shape, base))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
