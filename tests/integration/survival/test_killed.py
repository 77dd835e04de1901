"""Each role is killed, hangs, or is drained under load, on a cluster of real processes, simulated engines.

The short form of `python -m bench survival`: one cluster for all.
"""

import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from bench.cluster import Cluster
from bench.processes.survival import CASES, Case, Run, survive
from bench.processes.survival_client import expected_tokens

REPLICAS = {"prefill": 2, "decode": 2, "apiserver": 2}
REQUESTS = 64
pytestmark = pytest.mark.timeout(240)


def _is_whole(run: Run, requests: int = REQUESTS) -> None:
    assert run.failures() == []
    assert len(run.answers) == requests


@pytest.mark.parametrize("case", [case for case in CASES if case.role], ids=lambda case: case.name)
def test_every_answer_is_whole_and_what_was_killed_returns(cluster: Cluster, case: Case) -> None:
    run = survive(cluster, case, REQUESTS, expected_tokens)
    _is_whole(run)
    assert run.back_at, f"{case.role} did not return"
    if case.role not in ("apiserver-0", "*"):  # whose clients' connections die with them
        assert run.retried() == 0, "clients noticed"


def _drain(cluster: Cluster, *arguments: str) -> str:
    command = [sys.executable, "-m", "llmserve.cli", "drain", "--run-dir", str(cluster.run_dir), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _until(cluster: Cluster, name: str, stand: str) -> None:
    deadline = time.monotonic() + 60
    while cluster.role(name)["stand"] != stand:
        assert time.monotonic() < deadline, cluster.role(name)
        time.sleep(0.1)


@pytest.mark.parametrize("timeout_seconds", ["30", "0.1"], ids=["runs end", "runs move"])
def test_a_worker_is_drained_under_load_and_taken_back(cluster: Cluster, timeout_seconds: str) -> None:
    runs: list[Run] = []
    load = threading.Thread(
        target=lambda: runs.append(survive(cluster, Case("nothing", ""), REQUESTS, expected_tokens))
    )
    load.start()
    said = _drain(cluster, "decode-1", "--timeout", timeout_seconds)
    load.join()
    _is_whole(runs[0])
    assert "decode-1 has stopped" in said
    assert cluster.role("decode-1")["stand"] == "drained"
    assert _status(cluster)["healthy"], "somebody wanted it so"
    _drain(cluster, "decode-1", "--undo")
    _until(cluster, "decode-1", "ready")


def test_what_is_not_there_cannot_be_drained(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "llmserve.cli", "drain", "--run-dir", str(cluster.run_dir), "router-0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert (
        "router-0 is no worker: only prefill-0, prefill-1, decode-0, decode-1 can be drained" in done.stderr
    )


def _status(cluster: Cluster) -> dict[str, Any]:
    command = [sys.executable, "-m", "llmserve.cli", "status", "--run-dir", str(cluster.run_dir), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    status: dict[str, Any] = json.loads(done.stdout)
    return status
