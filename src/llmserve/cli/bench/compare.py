"""`llmserve bench compare`: aggregated against disaggregated, from one manifest, in turns."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import uvloop
import yaml
from rich.console import Console

from llmserve.cli.bench.options import AGGREGATED, DISAGGREGATED
from llmserve.cli.bench.page import contrast_page, watched
from llmserve.cli.bench.run import load_of, target_of, trust_in, ways_of
from llmserve.cli.command import EXIT_FAILED, EXIT_OK
from llmserve.cli.screen import screen
from llmserve.config.load import load_manifest
from llmserve.core.errors import InvalidRequest, StartFailed
from llmserve.loadgen.comparison import Comparison, Round
from llmserve.loadgen.comparison_page import comparison_page
from llmserve.loadgen.drive import LoadOutcome, run_load
from llmserve.loadgen.load import Load
from llmserve.loadgen.report import LoadReport, Slo, make_report
from llmserve.rpc.role import beside
from llmserve.runner.process import launch
from llmserve.runner.state import ClusterState, read_state

_POLL_SECONDS = 0.2
_STOP_SECONDS = 120.0
_LOG_CHARACTERS = 3000
_BESIDE = (("tls", "certificate"), ("tls", "key"), ("mtls", "directory"), ("keys", "file"))


@dataclass(frozen=True, slots=True)
class Shapes:
    """One model of a manifest in both shapes, with as many engines in each: agg has those of prefill and
    decode, each doing both. documents: by AGGREGATED and DISAGGREGATED."""

    model: str
    engines: int
    documents: Mapping[str, dict[str, Any]]


def shapes_of(path: Path, model: str | None = None) -> Shapes:
    """model: one of several in the manifest; None: the first. Errors: ManifestError; InvalidRequest for a
    cluster of one engine."""
    loaded = load_manifest(path)
    names = [one.served_name for one in loaded.served]
    name = model or names[0]
    manifest = loaded.for_model(name)
    replicas, disaggregated = manifest.deployment.replicas, manifest.deployment.disaggregated
    engines = replicas.decode + (replicas.prefill if disaggregated else 0)
    if engines < 2:
        raise InvalidRequest(
            f"{path}: disagg needs two engines: set deployment.replicas.prefill and decode, or decode to 2"
        )
    prefill = replicas.prefill if disaggregated else max(1, engines // 2)
    document = _of_one_model(yaml.safe_load(path.read_text()), names.index(name))
    _name_files(document.get("spec", document), path)
    documents = {
        AGGREGATED: _changed(document, False, {"prefill": 0, "decode": engines}),
        DISAGGREGATED: _changed(document, True, {"prefill": prefill, "decode": engines - prefill}),
    }
    return Shapes(name, engines, documents)


def _of_one_model(document: dict[str, Any], index: int) -> dict[str, Any]:
    """Leaves the other models out, and the shape that this one has."""
    spec = document.get("spec", document)
    if isinstance(spec["models"], list):
        entry = spec["models"][index]
        spec["models"] = [{key: entry[key] for key in entry if key not in ("replicas", "disaggregated")}]
    return document


def _name_files(spec: dict[str, Any], manifest: Path) -> None:
    """Names files that are beside the manifest from where another manifest is, too."""
    for part, key in _BESIDE:
        section = (spec.get("security") or {}).get(part)
        if section and section.get(key):
            section[key] = str(beside(manifest, section[key]))


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
def running(document: Mapping[str, Any], ready_seconds: float) -> Iterator[ClusterState]:
    """Yields a cluster of this manifest, on a free port, in a run directory of its own, and
    stops it at the end. Call it in the main thread. Errors: StartFailed with the end of its output."""
    with tempfile.TemporaryDirectory(prefix="llmserve-bench-") as scratch:
        path, run_dir, log = Path(scratch, "llmserve.yaml"), Path(scratch, "run"), Path(scratch, "up.log")
        path.write_text(yaml.safe_dump(_placed(document, run_dir)))
        with log.open("wb") as out:
            process = _start(path, out.fileno())
        try:
            yield _ready(process, run_dir, log, ready_seconds)
        finally:
            _stop(process)


def _placed(document: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    placed = deepcopy(dict(document))
    deployment = placed.get("spec", placed)["deployment"]
    local = deployment.get("local") or {}
    deployment["local"] = {**local, "host": "127.0.0.1", "port": 0, "run_dir": str(run_dir)}
    return placed


def _start(path: Path, out: int) -> subprocess.Popen[bytes]:
    """Starts a session of its own: Ctrl-C reaches this process, which then stops the cluster. The cluster
    ends with this process."""
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
    """Stops the cluster in order. If that takes too long it is killed, and its guard clears up."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(options: argparse.Namespace) -> int:
    slo, load, shapes = Slo.parse(options.slo), load_of(options), shapes_of(Path(options.file), options.model)
    base = options.base
    other = DISAGGREGATED if base == AGGREGATED else AGGREGATED
    progress = Console(stderr=True, highlight=False)
    rounds: list[Round] = []
    reports: list[dict[str, LoadReport]] = []
    for number in range(options.rounds):
        names = (base, other) if number % 2 == 0 else (other, base)
        progress.print(f"Round {number + 1} of {options.rounds}: {' then '.join(names)}")
        turns = {name: _turn(options, shapes, name, _of_round(load, number)) for name in names}
        reports.append({name: make_report(one.records, one.about, slo, {}) for name, one in turns.items()})
        rounds.append(_round(turns[base], turns[other], reports[-1][base], reports[-1][other]))
    found = Comparison.of(base, other, rounds, reports)
    if options.html:
        Path(options.html).write_text(comparison_page(found), encoding="utf-8")
    if options.json:
        print(json.dumps(_as_json(found)))
    else:
        _show(found)
    return EXIT_OK if found.contrasts else EXIT_FAILED


def _of_round(load: Load, number: int) -> Load:
    """Each round has other prompts and times, the same for both shapes."""
    return replace(load, seed=load.seed + number)


def _turn(options: argparse.Namespace, shapes: Shapes, name: str, load: Load) -> LoadOutcome:
    """Errors: StartFailed; Unavailable when the cluster does not answer; KeyboardInterrupt when the load
    was cut."""
    with running(shapes.documents[name], options.ready_timeout) as cluster:
        url, trust = cluster.base_urls[0], trust_in(cluster)
        target = target_of(options, url, options.model or shapes.model, trust)
        outcome: LoadOutcome = uvloop.run(run_load(load, target, ways_of(options), watched))
    if outcome.is_cut:
        raise KeyboardInterrupt
    return outcome


def _round(base: LoadOutcome, other: LoadOutcome, base_report: LoadReport, other_report: LoadReport) -> Round:
    return Round(base.records, other.records, base_report.seconds, other_report.seconds)


def _as_json(found: Comparison) -> dict[str, object]:
    return {
        "base": found.base,
        "other": found.other,
        "verdict": found.verdict,
        "contrasts": [{**asdict(one), "finding": one.finding} for one in found.contrasts],
        "rounds": [{name: asdict(report) for name, report in one.items()} for one in found.reports],
    }


def _show(found: Comparison) -> None:
    page = screen()
    page.print(f"Load: {found.about.load}, {len(found.rounds)} rounds", markup=False)
    page.print(contrast_page(found.contrasts, found.base, found.other))
    for name in found.names:
        page.print(found.served_words(name), markup=False)
    for note in found.notes:
        page.print(f"Note: {note}", style="yellow", markup=False)
    page.print(found.verdict, style="bold", markup=False)
