"""A disk that is full while an adapter is fetched: a real file system, which a process mounts for itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.adapters import digest_of, random_adapter, tiny_base

ROOT = Path(__file__).parents[3]
OWN_MOUNTS = ("unshare", *(() if os.geteuid() == 0 else ("-Ur",)), "--mount")
SECONDS = 60.0


def _may_mount(directory: Path) -> bool:
    command = (*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", str(directory))
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except OSError:
        return False


def test_a_disk_that_gets_full_leaves_nothing_and_the_next_try_does(tmp_path: Path) -> None:
    """What was there before goes on being used."""
    base, small = tiny_base(tmp_path / "base"), tmp_path / "small"
    one, two = (random_adapter(tmp_path / f"{seed}", base, seed) for seed in (1, 2))
    small.mkdir()
    if not _may_mount(small):
        pytest.skip("this machine lets processes have no mounts of their own")
    script = (sys.executable, "-m", "tests.integration.models.full_disk")
    command = (*OWN_MOUNTS, *script, str(small), f"dir:{one}", f"dir:{two}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert f"{small}/disk: no room for an adapter of " in found["error"]
    assert ": 0 bytes are free on the file system" in found["error"]
    assert (found["left"], found["kept"]) == ([digest_of(one)], digest_of(one))
    assert found["fetched"] == digest_of(two)
    assert not list(small.iterdir()), "the mount was the other process's own"
