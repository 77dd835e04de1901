"""Each role is killed, hangs, or is drained under load, on a cluster of real processes, simulated engines.

The short form of `python -m bench survival`: one cluster for all.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types import Batch

from bench.cluster import Cluster
from bench.processes.survival import CASES, Case, Run, survive
from bench.processes.survival_client import expected_tokens

REPLICAS = {"prefill": 2, "decode": 2, "apiserver": 2}
APISERVERS = ("apiserver-0", "apiserver-1")
REQUESTS = 64
pytestmark = pytest.mark.timeout(240)


def _is_whole(run: Run, requests: int = REQUESTS) -> None:
    assert run.failures() == []
    assert len(run.answers) == requests


# The test of a batch has that of an apiserver that is killed.
ALONE = [case for case in CASES if case.role and (case.role != "apiserver-0" or case.stop)]


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
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
    status = _status(cluster)
    assert status["healthy"], ("somebody wanted it so", status["problems"])
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


BATCH_LINES = 200


def _batch_line(number: int) -> str:
    body = {
        "model": "SmolLM2-135M-Instruct",
        "prompt": f"line {number}",
        "max_tokens": 60,
        "ignore_eos": True,
    }
    return json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body})


def _batch_until(client: openai.OpenAI, batch_id: str, holds: Callable[[Batch], bool]) -> Batch:
    deadline = time.monotonic() + 60
    while not holds(batch := client.batches.retrieve(batch_id)):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    return batch


def test_a_batch_goes_on_when_its_apiserver_is_killed_and_clients_take_the_other(cluster: Cluster) -> None:
    """No line that was finished runs again, and none is lost. Every answer of the clients is whole."""
    client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=5)
    lines = "\n".join(map(_batch_line, range(BATCH_LINES))).encode()
    file = client.files.create(file=("lines.jsonl", lines), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    before = _batch_until(client, batch.id, lambda one: _completed(one) >= 20)
    owners = {name: cluster.metrics(name)["apiserver_running_batches"] for name in APISERVERS}
    (owner,) = [name for name, count in owners.items() if count == 1]
    (other,) = [name for name in APISERVERS if name != owner]
    run = survive(cluster, Case("the apiserver of a batch", owner), REQUESTS, expected_tokens)
    _is_whole(run)
    assert run.back_at, f"{owner} did not return"
    after = _batch_until(client, batch.id, lambda one: one.status not in ("in_progress", "finalizing"))
    assert after.status == "completed"
    assert after.request_counts is not None
    assert after.request_counts.to_dict() == {"total": BATCH_LINES, "completed": BATCH_LINES, "failed": 0}
    assert after.output_file_id is not None
    rows = [json.loads(row) for row in client.files.content(after.output_file_id).text.splitlines()]
    assert sorted(int(row["custom_id"]) for row in rows) == list(range(BATCH_LINES))
    ran_there = cluster.metrics(other)['apiserver_batch_lines_total{result="completed"}']
    assert 0 < ran_there <= BATCH_LINES - _completed(before)


def _completed(batch: Batch) -> int:
    return batch.request_counts.completed if batch.request_counts else 0
