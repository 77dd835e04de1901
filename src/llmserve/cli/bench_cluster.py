"""Clusters for `llmserve bench compare`: both shapes of one manifest, each started, loaded and stopped."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmserve.cli.bench_options import AGGREGATED, DISAGGREGATED
from llmserve.config.load import load_manifest
from llmserve.core.errors import InvalidRequest, StartFailed
from llmserve.runner import launch
from llmserve.runner.machine import pick_port
from llmserve.runner.state import ClusterState, read_state

_POLL_SECONDS = 0.2
_STOP_SECONDS = 120.0
_LOG_CHARACTERS = 3000


@dataclass(frozen=True, slots=True)
class Shapes:
    """One manifest with as many engines in both: agg has those of prefill and decode, each doing both.
    documents: by AGGREGATED and DISAGGREGATED."""

    model: str
    engines: int
    documents: Mapping[str, dict[str, Any]]


def shapes_of(path: Path) -> Shapes:
    """Errors: ManifestError; InvalidRequest for a cluster of one engine."""
    manifest = load_manifest(path)
    replicas, disaggregated = manifest.deployment.replicas, manifest.deployment.disaggregated
    engines = replicas.decode + (replicas.prefill if disaggregated else 0)
    if engines < 2:
        raise InvalidRequest(
            f"{path}: disagg needs two engines: set deployment.replicas.prefill and decode, or decode to 2"
        )
    prefill = replicas.prefill if disaggregated else max(1, engines // 2)
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    documents = {
        AGGREGATED: _changed(document, False, {"prefill": 0, "decode": engines}),
        DISAGGREGATED: _changed(document, True, {"prefill": prefill, "decode": engines - prefill}),
    }
    return Shapes(manifest.models.primary.served_name, engines, documents)


def _changed(document: dict[str, Any], disaggregated: bool, replicas: Mapping[str, int]) -> dict[str, Any]:
    changed = deepcopy(document)
    spec = changed.get("spec", changed)
    deployment = spec.get("deployment") or {}
    spec["deployment"] = {
        **deployment,
        "mode": "local",
        "disaggregated": disaggregated,
        "replicas": {**(deployment.get("replicas") or {}), **replicas},
    }
    return changed


@contextmanager
def running(document: Mapping[str, Any], ready_seconds: float) -> Iterator[str]:
    """The URL of a cluster of this manifest, on a free port, in a run directory of its own; stopped at the
    end. Call it in the main thread. Errors: StartFailed with the end of its output."""
    with tempfile.TemporaryDirectory(prefix="llmserve-bench-") as scratch:
        path, run_dir, log = Path(scratch, "llmserve.yaml"), Path(scratch, "run"), Path(scratch, "up.log")
        path.write_text(yaml.safe_dump(_placed(document, run_dir)))
        with log.open("wb") as out:
            process = _start(path, out.fileno())
        try:
            yield _ready(process, run_dir, log, ready_seconds).base_urls[0]
        finally:
            _stop(process)


def _placed(document: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    placed = deepcopy(dict(document))
    deployment = placed.get("spec", placed)["deployment"]
    local = deployment.get("local") or {}
    deployment["local"] = {**local, "host": "127.0.0.1", "port": pick_port(), "run_dir": str(run_dir)}
    return placed


def _start(path: Path, out: int) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for this process, which then stops it. It ends with this process."""
    up = (sys.executable, "-m", "llmserve.cli", "up", "-f", str(path))
    command = (sys.executable, "-I", "-S", str(launch.__file__), str(os.getpid()), *up)
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        raise StartFailed(f"cannot start a cluster: {error}") from error


def _ready(process: subprocess.Popen[bytes], run_dir: Path, log: Path, seconds: float) -> ClusterState:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        state = read_state(run_dir) if run_dir.is_dir() else None
        if state is not None and state.stand == "ready":
            return state
        time.sleep(_POLL_SECONDS)
    how = "ended" if process.poll() is not None else f"was not ready after {seconds:.0f} s"
    raise StartFailed(f"the cluster {how}; it said:\n{log.read_text(errors='replace')[-_LOG_CHARACTERS:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """In order. Killed, if that takes too long: its guard then clears up."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
