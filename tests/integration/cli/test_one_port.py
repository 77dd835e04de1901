"""A real cluster with two apiservers behind one port, and two routers, started in a shell with variables of
vLLM."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from unittest import mock

import httpx
import psutil
import pytest

from bench.cluster import Cluster, running
from tests.support.quick_doctor import quick_doctor
from tests.support.simulated import simulated
from tests.support.valkey import Valkey

pytestmark = pytest.mark.timeout(240)
MODEL = "SmolLM2-135M-Instruct"
CLIENTS = 64
_APISERVERS = ("apiserver-0", "apiserver-1")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cluster(redis: Valkey) -> Iterator[Cluster]:
    manifest = simulated("two-routers.yaml")
    spec = manifest["spec"]
    spec["state"]["redis"]["url"] = redis.url
    spec["deployment"]["replicas"]["decode"] = 1
    spec["engine"]["sim"] = {"prefill_tokens_per_second": 12000, "decode_step_seconds": 0.05}
    shell = {"VLLM_API_KEY": "x", "VLLM_PORT": "tcp://10.0.0.1:80"}
    with mock.patch.dict(os.environ, shell), running(manifest) as started:
        yield started


def _llmserve(cluster: Cluster, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmserve.cli", *arguments, "--run-dir", str(cluster.run_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def _completed(cluster: Cluster, name: str) -> float:
    return cluster.total(name, "apiserver_requests_total", 'outcome="completed"')


def test_the_shell_s_settings_do_not_reach_the_processes(cluster: Cluster) -> None:
    assert httpx.get(f"{cluster.url}/v1/models", timeout=10).status_code == 200
    said = (cluster.run_dir.parent / "up.log").read_text()
    note = next(line for line in said.splitlines() if "in the environment: ignored" in line)
    assert {"VLLM_API_KEY", "VLLM_PORT"} <= set(re.findall(r"\w+", note))


def test_both_share_the_load_of_64_clients(cluster: Cluster) -> None:
    before = {name: _completed(cluster, name) for name in _APISERVERS}
    body = {"model": MODEL, "prompt": [5] * 20, "max_tokens": 1}
    clients = [httpx.Client(base_url=cluster.url, timeout=60) for _ in range(CLIENTS)]
    threads = [threading.Thread(target=_ask_twice, args=(client, body)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    done = {name: _completed(cluster, name) - before[name] for name in _APISERVERS}
    assert sum(done.values()) == 2 * CLIENTS
    assert all(abs(count - CLIENTS) <= 0.2 * CLIENTS for count in done.values()), done


def _ask_twice(client: httpx.Client, body: dict[str, object]) -> None:
    for _ in range(2):
        assert client.post("/v1/completions", json=body).status_code == 200


def test_the_status_has_one_url_and_each_apiserver(cluster: Cluster) -> None:
    state = cluster.state()
    assert state["base_urls"] == [cluster.url]
    assert len({cluster.role(name)["direct"] for name in _APISERVERS}) == 2


def test_doctor_looks_at_a_running_cluster(cluster: Cluster) -> None:
    body = {"model": MODEL, "prompt": list(range(300, 500)), "max_tokens": 4}
    httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=30).raise_for_status()
    done = quick_doctor("--json", "--run-dir", str(cluster.run_dir))
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["healthy"] else 1)
    findings = {(one["section"], one["name"]): one for one in told["findings"]}
    for name in ("router-0", "router-1", "kvmanager-0", "prefill-0", "decode-0", *_APISERVERS):
        assert findings["cluster", name]["status"] == "ok", findings["cluster", name]
    assert {findings["cluster", f"API of {name}"]["status"] for name in _APISERVERS} == {"ok"}
    moved = findings["cluster", "KV to decode-0"]
    assert moved["figures"]["transferred_bytes"] > 0
    assert moved["figures"]["failures"] == 0
    assert ("cluster", "KV to prefill-0") not in findings
    pair = findings["cluster", "prefill-0 > decode-0"]
    assert pair["status"] in ("ok", "note")
    assert "(used)" in pair["value"]
    assert pair["figures"]["gigabytes_per_second"] > 0
    assert findings["cluster", "orphaned KV"]["status"] == "ok"
    assert findings["manifest", "run directory"]["value"].endswith("in use by the running cluster")
    assert ("manifest", "port") not in findings


def test_one_that_is_killed_takes_only_its_connections_along(cluster: Cluster) -> None:
    clients = [httpx.Client(base_url=cluster.url, timeout=30) for _ in range(8)]
    for client in clients:
        assert client.get("/live").status_code == 200
    killed = psutil.Process(cluster.pid("apiserver-1"))
    killed.kill()
    killed.wait(30)  # until the kernel has closed its connections
    broken = 0
    for client in clients:
        try:
            assert client.get("/live").status_code == 200
        except httpx.TransportError:
            broken += 1
            assert client.get("/live").status_code == 200, "a new connection goes to the other"
        client.close()
    assert broken <= 4
    deadline = time.monotonic() + 90
    while cluster.role("apiserver-1")["stand"] != "ready" or not cluster.role("apiserver-1")["restarts"]:
        assert time.monotonic() < deadline, cluster.role("apiserver-1")
        assert httpx.get(f"{cluster.url}/health", timeout=10).status_code == 200
        time.sleep(0.2)
    assert json.loads(_llmserve(cluster, "status", "--json").stdout)["healthy"]


def test_down_under_load_ends_every_stream_with_a_word(cluster: Cluster) -> None:
    """The last one: it ends the cluster."""
    body = {"model": MODEL, "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    texts: list[str] = []
    errors: list[Exception] = []

    def stream() -> None:
        try:
            with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=60) as answer:
                texts.append(answer.read().decode())
        except httpx.TransportError as error:
            errors.append(error)

    streams = [threading.Thread(target=stream) for _ in range(8)]
    for thread in streams:
        thread.start()
    deadline = time.monotonic() + 30
    while sum(cluster.total(name, "apiserver_running_requests") for name in _APISERVERS) < len(streams):
        assert time.monotonic() < deadline
    done = _llmserve(cluster, "down")
    for thread in streams:
        thread.join(30)
    assert done.returncode == 0, done.stderr
    assert errors == []
    assert len(texts) == len(streams)
    assert all("the server is stopping" in text for text in texts)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{cluster.url}/live", timeout=30)
    logs = "".join(path.read_text() for path in (cluster.run_dir / "logs").glob("apiserver-?.log"))
    assert "Exception in ASGI application" not in logs
