"""Room for models."""

import os
from pathlib import Path

import pytest

from llmserve.doctor import disk
from llmserve.doctor.finding import Status
from llmserve.doctor.host import GIB, MIB


@pytest.mark.parametrize(
    ("free", "status"), [(200 * MIB, Status.PROBLEM), (5 * GIB, Status.WARNING), (50 * GIB, Status.OK)]
)
def test_room(free: int, status: Status) -> None:
    found = disk.room("model cache", Path("/models"), free, "CACHE")
    assert found.status is status
    assert found.figures == {"free_bytes": free}


def test_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    found = disk.cache("model cache", tmp_path / "a" / "b", "CACHE")
    assert found.value.endswith(f"free at {tmp_path}/a/b")


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    found = disk.cache("model cache", tmp_path, "CACHE")
    assert found.status is Status.PROBLEM
    assert "set CACHE" in found.advice
