"""A cluster of its own for a measurement: started by `llmserve up`, stopped and checked at the end."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import yaml

from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import SECRET_NAME, Credentials

READY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Cluster:
    url: str
    run_dir: Path
    supervisor: subprocess.Popen[bytes]

    def state(self) -> dict[str, Any]:
        """What the runner wrote of itself: roles, pids, addresses, metrics ports."""
        state: dict[str, Any] = json.loads((self.run_dir / "cluster.json").read_text())
        return state

    def role(self, name: str) -> dict[str, Any]:
        roles: list[dict[str, Any]] = self.state()["roles"]
        return next(role for role in roles if role["name"] == name)

    def pid(self, name: str) -> int:
        """Of the role's process now; another after a restart."""
        return int(self.role(name)["pid"])

    def credentials(self, role: CallerRole, name: str) -> Credentials:
        """What a process of this role and name shows to others of the cluster."""
        return Credentials.read(role, name, str(Path(self.state()["temp_dir"]) / SECRET_NAME))

    def metrics(self, name: str) -> dict[str, float]:
        """Samples of a role's /metrics, by `name{labels}` as they are written there."""
        text = httpx.get(f"http://{self.role(name)['metrics']}/metrics", timeout=5).text
        samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {sample: float(value) for sample, _, value in samples}

    def total(self, name: str, metric: str, label: str = "") -> float:
        """Returns the sum of a role's series of a metric, or of those with a label (`outcome="failed"`)."""
        series = ((sample.partition("{"), value) for sample, value in self.metrics(name).items())
        return sum(value for (start, _, labels), value in series if start == metric and label in labels)


@contextmanager
def running(manifest: dict[str, Any]) -> Iterator[Cluster]:
    """Starts the manifest with its own run directory, on a port that it chooses; waits until it serves."""
    with tempfile.TemporaryDirectory(prefix="llmserve-bench-") as scratch:
        local = manifest["spec"].setdefault("deployment", {}).setdefault("local", {})
        local.update(port=0, run_dir=f"{scratch}/run")
        path = Path(scratch) / "llmserve.yaml"
        path.write_text(yaml.safe_dump(manifest))
        command = [sys.executable, "-m", "llmserve.cli", "up", "-f", str(path)]
        with open(Path(scratch) / "up.log", "wb") as log:
            supervisor = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        cluster = Cluster("", Path(local["run_dir"]), supervisor)
        try:
            _wait_ready(cluster, Path(scratch) / "up.log")
            yield replace(cluster, url=cluster.state()["base_urls"][0])
        finally:
            _stop(supervisor)


def _wait_ready(cluster: Cluster, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and cluster.supervisor.poll() is None:
        with suppress(FileNotFoundError):  # not written yet
            if cluster.state()["stand"] == "ready":
                return
        time.sleep(0.25)
    raise RuntimeError(f"the cluster did not become ready:\n{log.read_text()[-4000:]}")


def _stop(supervisor: subprocess.Popen[bytes]) -> None:
    if supervisor.poll() is None:
        supervisor.send_signal(signal.SIGINT)
    try:
        supervisor.wait(60)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()
        raise
