"""cluster.json and the lock of a run directory."""

import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from llmserve.config.load import parse_manifest
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.runner.process.family import SHARED_MEMORY_DIR, start_ticks
from llmserve.runner.state import STATE_NAME, ClusterState, RunLock, read_state, run_dir_of
from llmserve.runner.up import clear_leftovers

EXAMPLE = Path(__file__).parents[3] / "examples" / "sim.yaml"
STATE = ClusterState("0" * 32, "mine", "/m.yaml", os.getpid(), start_ticks(os.getpid()), 1.5, "ready")


@pytest.mark.parametrize(
    ("configured", "place"),
    [(None, "/m/.llmserve/mine"), ("run", "/m/run"), ("../run", "/run"), ("/r", "/r")],
)
def test_the_run_directory_is_beside_the_manifest(configured: str | None, place: str) -> None:
    manifest = yaml.safe_load(EXAMPLE.read_text())
    manifest["metadata"]["name"] = "mine"
    manifest["spec"]["deployment"]["local"] = {"run_dir": configured} if configured else {}
    parsed = parse_manifest(yaml.safe_dump(manifest), "m.yaml")
    assert run_dir_of(parsed, Path("/m/m.yaml")) == Path(place)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = replace(STATE, base_urls=["http://x"], roles=[{"name": "a", "pid": 3, "listen": None}])
    state.write(tmp_path)
    assert read_state(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == [STATE_NAME]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    assert read_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"cluster_id": "x", "unknown": 1}', "\udcff"])
def test_a_file_that_is_not_ours_is_said_with_its_path(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE_NAME).write_text(text, errors="surrogateescape")
    with pytest.raises(LLMServeError, match=STATE_NAME):
        read_state(tmp_path)


def test_a_write_that_fails_leaves_the_old_state_and_no_rest(tmp_path: Path) -> None:
    STATE.write(tmp_path)
    (tmp_path / f".{STATE_NAME}.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        replace(STATE, stand="stopping").write(tmp_path)
    assert read_state(tmp_path) == STATE
    assert [path.name for path in tmp_path.iterdir()] == [STATE_NAME]
    replace(STATE, stand="stopping").write(tmp_path)
    assert read_state(tmp_path) == replace(STATE, stand="stopping")


def test_it_runs_while_its_supervisor_does() -> None:
    assert STATE.is_running
    assert not replace(STATE, pid_started_ticks=1).is_running
    assert not replace(STATE, pid=2**22 + 1).is_running


def test_one_supervisor_for_each_run_directory(tmp_path: Path) -> None:
    here, there = tmp_path / "a" / "b", tmp_path / "c"
    with RunLock(here), RunLock(there):
        STATE.write(here)
        with pytest.raises(StartFailed, match=rf"runs in {here} \(cluster 'mine', pid {os.getpid()}\)"):
            RunLock(here).__enter__()
        with pytest.raises(StartFailed, match=f"runs in {there}: stop it with"):
            RunLock(there).__enter__()
    with RunLock(here):
        pass


def test_a_damaged_state_file_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).write_text("{")
    with RunLock(tmp_path), pytest.raises(StartFailed, match="a cluster already runs in"):
        RunLock(tmp_path).__enter__()


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartFailed, match="cannot be used as run directory"):
        RunLock(tmp_path / "file" / "run").__enter__()


def test_leftovers(tmp_path: Path) -> None:
    assert not clear_leftovers(tmp_path)
    name = f"llmserve-{STATE.cluster_id[:8]}-{uuid.uuid4().hex}"
    mine, other = tmp_path / name, tmp_path / "other"
    in_memory = SHARED_MEMORY_DIR / name
    in_memory.mkdir()
    for folder in (mine, other):
        folder.mkdir()
        replace(STATE, temp_dir=str(folder)).write(tmp_path)
        assert clear_leftovers(tmp_path)
        assert read_state(tmp_path) is None
    assert not mine.exists()
    assert not in_memory.exists(), "the adapters that its workers kept in memory"
    assert other.exists(), "a state file is only text: no folder is removed because it says so"


def test_half_a_state_file_is_a_leftover_too(tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).write_text('{"cluster_id": ')
    assert clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_shared_memory_is_believed_to_be_shared_memory(tmp_path: Path) -> None:
    mine = tmp_path / "file"
    mine.touch()
    roles = [{"shared_memory": [str(mine), f"/dev/shm/../..{mine}", "/dev/shm"]}, {}]
    replace(STATE, roles=roles).write(tmp_path)
    assert clear_leftovers(tmp_path)
    assert mine.exists()
