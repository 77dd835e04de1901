"""Which cluster a command means."""

import argparse
import os
from pathlib import Path

import pytest

from llmserve.cli.cluster import find_cluster, operator
from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.runner.process.family import start_ticks
from llmserve.runner.state import ClusterState

NOBODY = argparse.Namespace(file=None, run_dir=None)


def _run_dir(parent: Path, name: str, *, pid: int | None = None) -> Path:
    """That of a cluster whose supervisor is this process, or a pid that is nobody's."""
    folder = parent / ".llmserve" / name
    folder.mkdir(parents=True)
    mine = os.getpid()
    ClusterState(
        cluster_id=name,
        name=name,
        manifest="m.yaml",
        pid=pid or mine,
        pid_started_ticks=start_ticks(mine),
        started_at=0.0,
        stand="ready",
    ).write(folder)
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_only_one_that_runs_here(tmp_path: Path) -> None:
    _run_dir(tmp_path, "alive")
    _run_dir(tmp_path, "dead", pid=2**22 + 1)
    assert find_cluster(NOBODY).state.name == "alive"


def test_several_must_be_told_apart(tmp_path: Path) -> None:
    folder = _run_dir(tmp_path, "one")
    _run_dir(tmp_path, "two")
    with pytest.raises(InvalidRequest, match=r"one.*two"):
        find_cluster(NOBODY)
    chosen = argparse.Namespace(file=None, run_dir=str(folder))
    assert find_cluster(chosen).state.name == "one"


def test_by_its_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "m.yaml"
    manifest.write_text("kind: LLMServe\nmetadata: {name: mine}\nmodels: {primary: {source: hub:a/b}}\n")
    chosen = argparse.Namespace(file=str(manifest), run_dir=None)
    with pytest.raises(Unavailable, match="mine"):
        find_cluster(chosen)
    _run_dir(tmp_path, "mine")
    assert find_cluster(chosen).state.name == "mine"


def test_the_default_manifest_may_name_another_folder(tmp_path: Path) -> None:
    _run_dir(tmp_path / "elsewhere", "far")
    Path("llmserve.yaml").write_text(
        "kind: LLMServe\nmodels: {primary: {source: hub:a/b}}\n"
        "deployment: {local: {run_dir: elsewhere/.llmserve/far}}\n"
    )
    assert find_cluster(NOBODY).state.name == "far"


def test_a_user_without_a_name_is_known_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as any number."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.delenv("LLMSERVE_CLUSTER_SECRET_FILE", raising=False)
    assert operator().own == CallerIdentity(CallerRole.OPERATOR, str(os.getuid()))
