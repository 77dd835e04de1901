"""What dies comes back, what waits is given back. Last in the folder: it kills parts of the cluster."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from bench.cluster import Cluster
from bench.processes.survival import engine_child
from tests.support.held import held

MODEL = "SmolLM2-135M-Instruct"
BACK_SECONDS = 120.0
LEASES_SECONDS = 5.0


def _body(tokens: int = 200, max_tokens: int = 8, **more: Any) -> dict[str, Any]:
    prompt = [300 + (7 * number + int(time.monotonic() * 1000)) % 20_000 for number in range(tokens)]
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


def _eventually(what: str, check: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def _serves(http: httpx.Client) -> bool:
    try:
        return http.post("/v1/completions", json=_body()).status_code == 200
    except httpx.HTTPError:
        return False


def _kill(cluster: Cluster, name: str) -> int:
    pid = cluster.pid(name)
    os.kill(pid, signal.SIGKILL)
    return pid


def _wait_for_return(cluster: Cluster, http: httpx.Client, name: str, old_pid: int) -> None:
    def returned() -> bool:
        role = cluster.role(name)
        is_ready = role["pid"] != old_pid and role["stand"] == "ready"
        return is_ready and http.get("/health").status_code == 200

    _eventually(f"{name} is back", returned, BACK_SECONDS)
    _eventually("the cluster serves", lambda: _serves(http), BACK_SECONDS)


@pytest.mark.parametrize(
    ("stage", "read_chunks", "after_seconds"),
    [("during prefill", 0, 0.3), ("around the hand-over", 1, 0.0), ("during decode", 4, 0.0)],
)
def test_a_client_that_leaves_costs_nothing(
    cluster: Cluster, http: httpx.Client, stage: str, read_chunks: int, after_seconds: float
) -> None:
    body = _body(tokens=1200, max_tokens=400, stream=True)
    timeout = httpx.Timeout(60, read=after_seconds or 60)
    try:
        with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=timeout) as response:
            lines = (line for line in response.iter_lines() if line.startswith("data: {"))
            for _ in range(read_chunks):
                next(lines)
            if after_seconds:
                next(lines)
    except httpx.ReadTimeout:
        assert after_seconds, stage
    _eventually(f"given back after a client left {stage}", lambda: not held(cluster), LEASES_SECONDS)
    assert _serves(http)


def test_the_router_restarts_under_a_running_stream(cluster: Cluster, http: httpx.Client) -> None:
    with http.stream("POST", "/v1/completions", json=_body(max_tokens=120, stream=True)) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))
        next(lines)
        old = _kill(cluster, "router-0")
        assert sum(1 for _ in lines) >= 100, "the stream goes on without the router"
    _wait_for_return(cluster, http, "router-0", old)


def test_the_kvmanager_is_not_needed_to_serve(cluster: Cluster, http: httpx.Client) -> None:
    old = _kill(cluster, "kvmanager-0")
    assert _serves(http)
    _wait_for_return(cluster, http, "kvmanager-0", old)
    _eventually(
        "the directory is filled again", lambda: cluster.metrics("kvmanager-0")["kv_directory_blocks"] > 0, 30
    )


@pytest.fixture
def auto(disaggregating: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
    """As users have it: either role serves alone while the other is away."""
    with disaggregating("auto"):
        yield


@pytest.mark.usefixtures("auto")
def test_a_prefill_worker_dies_and_returns(cluster: Cluster, http: httpx.Client) -> None:
    """A decode worker dies in test_adapters.py."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(http.post, "/v1/completions", json=_body(tokens=1000, max_tokens=64))
        time.sleep(1.0)
        old = _kill(cluster, "prefill-0")
    assert asked.result().status_code == 200, f"the other worker goes on: {asked.result().text}"
    _wait_for_return(cluster, http, "prefill-0", old)
    _eventually("given back", lambda: not held(cluster), LEASES_SECONDS)


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("name", ["decode-0", "prefill-0"])
def test_an_engine_that_hangs_is_replaced_and_the_other_goes_on(
    cluster: Cluster, http: httpx.Client, name: str
) -> None:
    worker = cluster.pid(name)
    with http.stream("POST", "/v1/completions", json=_body(max_tokens=150, stream=True)) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))
        read = [next(lines) for _ in range(3)]
        os.kill(engine_child(worker), signal.SIGSTOP)
        began = time.monotonic()
        # One that is placed before the router knows waits until the worker gives it back, or its own worker.
        late = http.post("/v1/completions", json=_body(tokens=1000), timeout=BACK_SECONDS)
        read += list(lines)
    assert late.status_code == 200, late.text
    assert time.monotonic() - began < 60, "sooner than by the deadlines of requests"
    assert not any('"error"' in line for line in read), read[-1]
    assert any('"finish_reason":"length"' in line for line in read), read[-1]
    _wait_for_return(cluster, http, name, worker)
    _eventually("given back", lambda: not held(cluster), LEASES_SECONDS)
