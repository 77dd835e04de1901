"""One worker of each role: one that is killed, or hangs, is replaced; the other serves alone meanwhile."""

import json
import signal
import subprocess
import sys

import pytest

from bench.cluster import Cluster
from bench.processes.survival import SINGLE_CASES, Case, survive
from bench.processes.survival_client import expected_tokens

REPLICAS = {"prefill": 1, "decode": 1}
REQUESTS = 64
pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("case", SINGLE_CASES, ids=lambda case: case.name)
def test_every_answer_is_whole_and_the_worker_returns(cluster: Cluster, case: Case) -> None:
    run = survive(cluster, case, REQUESTS, expected_tokens)
    assert run.failures() == []
    assert len(run.answers) == REQUESTS
    assert run.back_at, f"{case.role} did not return"
    assert run.retried() == 0, "clients noticed"


def test_a_stopped_supervisor_is_a_problem_in_the_status(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "llmserve.cli", "status", "--run-dir", str(cluster.run_dir), "--json"]
    cluster.supervisor.send_signal(signal.SIGSTOP)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        cluster.supervisor.send_signal(signal.SIGCONT)
    problems = json.loads(done.stdout)["problems"]
    assert problems[0].startswith("the supervisor is stopped")
    assert problems[0].endswith(f"kill -CONT {cluster.supervisor.pid}")
