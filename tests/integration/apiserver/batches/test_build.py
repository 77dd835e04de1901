"""Where batches are kept, and when they are off."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llmserve.apiserver.batches.bucket import BucketStorage
from llmserve.apiserver.batches.build import build_batches, streamed_paths
from llmserve.apiserver.batches.disk import DiskStorage
from llmserve.apiserver.batches.service import BatchService
from llmserve.config.schema import Batches
from llmserve.core.errors import ManifestError
from llmserve.metrics.apiserver import BatchMetrics


def _built(run_dir: Path | None, **keys: Any) -> BatchService | None:
    async def gate(*_: Any) -> None:
        raise AssertionError("nothing is sent yet")

    place = None if run_dir is None else str(run_dir)
    return build_batches(Batches(**keys), place, BatchMetrics(CollectorRegistry()), gate, max_body_bytes=1000)


def test_places(tmp_path: Path) -> None:
    in_run_dir = _built(tmp_path / "run")
    assert in_run_dir is not None
    assert isinstance(in_run_dir._storage, DiskStorage)
    assert (tmp_path / "run" / "batches").is_dir()
    chosen = _built(tmp_path / "run", location=str(tmp_path / "mine"))
    assert chosen is not None
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700  # others' prompts are nobody's to read
    bucket = _built(None, location="s3://bucket/prefix", endpoint="http://h:1", region="eu")
    assert bucket is not None
    assert isinstance(bucket._storage, BucketStorage)


def test_they_are_off_without_a_place_or_when_the_manifest_says_so(tmp_path: Path) -> None:
    assert _built(None) is None
    assert _built(tmp_path, enabled=False) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("location", ["/dev/null/batches", "az://account"])
def test_a_place_that_cannot_be_used(location: str) -> None:
    with pytest.raises(ManifestError, match=r"batches\.location"):
        _built(None, location=location)


def test_a_line_has_room_for_what_is_around_its_body(tmp_path: Path) -> None:
    built = _built(tmp_path)
    assert built is not None
    assert built.parts.max_line_bytes == 1000 + (64 << 10)


def test_an_upload_has_room_for_its_form() -> None:
    assert streamed_paths(Batches(max_file_mb=2)) == {"/v1/files": 3 << 20}
