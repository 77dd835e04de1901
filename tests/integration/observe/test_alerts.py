"""Alerts come when their fault is caused, in a real Prometheus that scrapes a running cluster.

Others are in test_dashboards.py. The tests here are steps: one cluster goes from fault to fault, under load.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bench.cluster import Cluster, running
from bench.ports import free_port
from tests.support.prometheus import ROOT, Prometheus, prometheus

pytestmark = pytest.mark.timeout(240)
MODEL = "SmolLM2-135M-Instruct"
IN_FLIGHT, ASKERS = 4, 12
FLAPS = 3
WAIT_SECONDS = 30.0
# One transport fails always. The other is so slow that some KV is leased at any time.
FAULTS = "shm: fail_submit=1/1; tcp: delay=1/1 for 0.5s"


@dataclass(frozen=True)
class Watched:
    cluster: Cluster
    prometheus: Prometheus

    def wait_for(self, alert: str) -> None:
        until(lambda: alert in self.prometheus.fired(), alert)

    def fired_for(self, alert: str, label: str) -> set[str]:
        """What the label was each time; it may be over by now."""
        found = self.prometheus.query(
            f'max_over_time(ALERTS{{alertname="{alert}", alertstate="firing"}}[5m])'
        )
        return {row["metric"][label] for row in found}

    def decode_workers(self, state: str) -> float:
        """How many are in the state, as the router sees it."""
        samples = self.cluster.metrics("router-0")
        return samples.get(f'router_workers{{role="decode",state="{state}"}}', 0.0)


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def manifest() -> dict[str, Any]:
    """Fewer requests may run than are sent; nothing is handed over."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "sim.yaml").read_text())
    spec = found["spec"]
    spec["deployment"]["replicas"] = {"prefill": 1, "decode": 2}
    spec["budgets"] = {"max_requests_in_flight": IN_FLIGHT}
    spec["scheduling"] = {
        "disaggregate": "never",
        "worker_heartbeat_seconds": 0.2,
        "worker_expiry_seconds": 1,
    }
    spec["transfer"] = {"engine_order": [], "mode": "pull"}
    spec["observability"] = {"port": free_port()}
    return found


@contextmanager
def load(url: str) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=_ask_always, args=(url, stop, seed)) for seed in range(ASKERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask_always(url: str, stop: threading.Event, seed: int) -> None:
    rng = random.Random(seed)
    with httpx.Client(timeout=20) as http:
        while not stop.is_set():
            prompt = [rng.randrange(1000, 40000) for _ in range(200)]
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 20}
            with suppress(httpx.HTTPError):
                http.post(f"{url}/v1/completions", json=body)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    made = manifest()
    page = f"127.0.0.1:{made['spec']['observability']['port']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMSERVE_FAULTS", FAULTS)
        with (
            running(made) as cluster,
            prometheus(tmp_path_factory.mktemp("prometheus"), page) as found,
            load(cluster.url),
        ):
            yield Watched(cluster, found)


def test_a_transport_that_fails_between_workers(watched: Watched) -> None:
    watched.wait_for("LLMServeBreakerOpen")
    assert "shm" in watched.fired_for("LLMServeBreakerOpen", "transport")


def test_prefill_engines_that_nothing_is_handed_over_from(watched: Watched) -> None:
    watched.wait_for("LLMServeNotDisaggregated")


def test_a_budget_that_is_used_up_while_requests_wait(watched: Watched) -> None:
    watched.wait_for("LLMServeBudgetStarvation")
    assert "requests in flight" in watched.fired_for("LLMServeBudgetStarvation", "budget")


def test_kv_that_is_leased_by_a_worker_that_died(watched: Watched) -> None:
    assert "LLMServeOrphanedKv" not in watched.prometheus.fired()
    hand_over(watched)
    pid = watched.cluster.pid("prefill-0")
    try:
        until(lambda: stopped_with_leases(watched, pid), "no KV is leased")
    finally:
        os.kill(pid, signal.SIGKILL)
    watched.wait_for("LLMServeOrphanedKv")


def hand_over(watched: Watched) -> None:
    """From now on: the manifest is reloaded."""
    path = Path(watched.cluster.state()["manifest"])
    path.write_text(path.read_text().replace("disaggregate: never", "disaggregate: always"))
    watched.cluster.supervisor.send_signal(signal.SIGHUP)


def stopped_with_leases(watched: Watched, pid: int) -> bool:
    """False: it leased nothing at that moment, and goes on."""
    os.kill(pid, signal.SIGSTOP)
    if watched.cluster.metrics("kvmanager-0").get("kv_leased_blocks", 0.0) > 0:
        return True
    os.kill(pid, signal.SIGCONT)
    return False


def test_a_worker_that_comes_and_goes(watched: Watched) -> None:
    pid = watched.cluster.pid("decode-1")
    try:
        for _ in range(FLAPS):
            until(lambda: watched.decode_workers("available") == 2, "decode-1 is not there")
            os.kill(pid, signal.SIGSTOP)
            until(lambda: watched.decode_workers("available") == 1, "nobody misses decode-1")
            os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)
    watched.wait_for("LLMServeWorkerFlapping")
    assert "decode-1" in watched.fired_for("LLMServeWorkerFlapping", "worker")
