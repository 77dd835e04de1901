"""up, status and down on a real cluster of simulated engines, as a user types them. No optional package is
there."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from bench.cluster import Cluster, running
from tests.support.simulated import simulated
from tests.support.terminal import terminal

pytestmark = pytest.mark.timeout(120)
_REGISTERED = "registered: worker=decode-0"
_OPTIONAL = ("nixl", "ucxx")
_HEALTHY_SECONDS = 30.0
_ALWAYS_THERE = ("shm", "tcp")
# Where both shapes of a cluster would show the same.
_once = pytest.mark.parametrize("cluster", [False], indirect=True, ids=["processes"])


@pytest.fixture(scope="module", params=[False, True], ids=["processes", "single_process"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    manifest = simulated("sim.yaml")
    deployment = manifest["spec"]["deployment"]
    deployment["replicas"] = {"prefill": 1, "decode": 2}
    deployment["local"] = {"single_process": request.param}
    manifest["spec"]["scheduling"] = {"disaggregate": "always"}
    manifest["spec"]["transfer"] = {"engine_order": ["nixl", "ucx"]}
    without = mock.patch.dict(os.environ, PYTHONPATH=_without_packages(tmp_path_factory.mktemp("packages")))
    with without, running(manifest) as started:
        yield started


def _without_packages(folder: Path) -> str:
    """A PYTHONPATH on which the optional ones cannot be imported."""
    for name in _OPTIONAL:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")")
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))


def _llmserve(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmserve.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _status(cluster: Cluster) -> dict[str, Any]:
    """On a busy machine, one role or another answers too late to count as healthy."""
    deadline = time.monotonic() + _HEALTHY_SECONDS
    while (done := _llmserve("status", "--run-dir", str(cluster.run_dir), "--json")).returncode:
        assert time.monotonic() < deadline, done.stdout + done.stderr
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def test_status_shows_what_a_request_left(cluster: Cluster) -> None:
    before = _status(cluster)
    assert before["healthy"]
    names = {role["name"] for role in before["roles"]}
    assert names >= {"prefill-0", "decode-0", "decode-1"}
    _ask(cluster)
    deadline = time.monotonic() + 30  # workers report once a second
    while not (_moved_kv(workers := _workers(cluster)) and _stores_kv(workers)):
        assert time.monotonic() < deadline, workers


def _ask(cluster: Cluster) -> httpx.Response:
    body = {"model": _status(cluster)["model"], "prompt": list(range(300, 500)), "max_tokens": 4}
    return httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=30).raise_for_status()


@_once
def test_it_serves_and_says_what_it_lacks(cluster: Cluster) -> None:
    answer = _ask(cluster)
    assert answer.headers["x-llmserve-transport"] in _ALWAYS_THERE
    assert "x-llmserve-fallback" not in answer.headers
    status = json.dumps(_status(cluster))
    for name in _OPTIONAL:
        assert f"No module named '{name}'" in status


def _workers(cluster: Cluster) -> dict[str, Any]:
    return {role["name"]: role["worker"] for role in _status(cluster)["roles"] if role["worker"]}


def _moved_kv(workers: dict[str, Any]) -> bool:
    return any(worker["transferred_bytes"] for worker in workers.values())


def _stores_kv(workers: dict[str, Any]) -> bool:
    return bool(workers["prefill-0"]["stored_blocks"])


@_once
def test_status_goes_on_in_a_terminal(cluster: Cluster) -> None:
    """Two looks, drawn over each other; Ctrl-C ends it, and leaves the terminal as it was."""
    _ask(cluster)  # from then on there is a tenant, and a pair of workers
    command = ("status", "--run-dir", str(cluster.run_dir), "--watch", "--every", "0.2")
    with terminal(*command) as shown:
        shown.until(lambda: shown.text().count("Ctrl-C ends") >= 2)
        shown.process.send_signal(signal.SIGINT)
        shown.until(lambda: shown.process.poll() is not None)
    text = shown.text()
    assert shown.process.returncode == 0, text
    for part in ("decode-1", "TENANT", "KV FROM, TO", "0 orphaned"):
        assert part in text
    assert "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.index("\x1b[?25l"), "the cursor is back"


@_once
def test_logs_are_followed_through_a_restart(cluster: Cluster) -> None:
    command = ("logs", "decode-0", "--run-dir", str(cluster.run_dir), "--follow")
    pid = cluster.pid("decode-0")
    with terminal(*command) as shown:
        shown.until(lambda: _REGISTERED in shown.text())
        before = shown.text().count(_REGISTERED)
        os.kill(pid, signal.SIGKILL)
        shown.until(lambda: shown.text().count(_REGISTERED) > before)
        shown.process.send_signal(signal.SIGINT)
        shown.until(lambda: shown.process.poll() is not None)
    assert shown.process.returncode == 0, shown.text()
    assert "decode-1" not in shown.text()
    assert cluster.pid("decode-0") != pid
    done = _llmserve("logs", "router-7", "--run-dir", str(cluster.run_dir))
    assert done.returncode == 2
    assert "there are: model" in done.stderr


def test_a_second_up_in_its_place_is_refused(cluster: Cluster) -> None:
    done = _llmserve("up", "-f", cluster.state()["manifest"])
    assert done.returncode == 1
    assert "already runs" in done.stderr
    assert str(cluster.state()["pid"]) in done.stderr


def test_down_leaves_nothing(cluster: Cluster) -> None:
    """The last one: it ends the cluster. Who watches it is told."""
    with terminal("status", "--run-dir", str(cluster.run_dir), "--watch", "--every", "0.2") as watching:
        watching.until(lambda: "decode-1" in watching.text())
        done = _llmserve("down", "--run-dir", str(cluster.run_dir))
        watching.until(lambda: "no cluster runs in" in watching.text())
        assert watching.process.poll() is None
    assert done.returncode == 0, done.stderr
    assert "has stopped" in done.stdout
    assert cluster.supervisor.wait(30) == 0
    assert not (cluster.run_dir / "cluster.json").exists()
    logs = _llmserve("logs", "decode-1", "--run-dir", str(cluster.run_dir))
    assert "registered: worker=decode-1" in logs.stdout, "what it wrote is still there"
    after = _llmserve("status", "--run-dir", str(cluster.run_dir))
    assert after.returncode == 1
    assert "no cluster runs" in after.stderr
