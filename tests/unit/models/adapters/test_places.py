"""Adapters of a manifest that cannot be had on this machine."""

import sys
from pathlib import Path

import pytest

from llmserve.config.schema import AdapterSpec
from llmserve.models.adapters.places import adapter_refusals
from tests.support.adapters import SPOILERS


def refusals(*sources: str) -> list[str]:
    adapters = [AdapterSpec(name=source, source=source) for source in sources]
    return [f"{one.paths[0][2]} {one.message}" for one in adapter_refusals(adapters)]


def test_what_is_there_or_elsewhere_is_not_refused(adapter: Path) -> None:
    assert refusals(f"dir:{adapter}", "hub:org/name", "s3://bucket/prefix") == []


def test_a_directory_without_an_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    SPOILERS["pickle"](adapter)
    missing, pickled = refusals(f"dir:{tmp_path}/none", f"dir:{adapter}")
    assert missing.startswith("0 adapter 'dir:")
    assert missing.endswith("none is not a directory on this host")
    assert "1 adapter" in pickled
    assert "is a pickle" in pickled


def test_buckets_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llmserve.models.adapters.bucket", None)  # an ImportError
    (said,) = refusals("s3://bucket/prefix")
    assert "pip install 'llmserve[s3]'" in said
