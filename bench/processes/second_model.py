"""What a second model costs the first one while nobody asks for it: idle CPU of all processes that were there
before, and time and CPU of a request to the first one. In one cluster: alone, beside it, and alone again.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from bench.cluster import READY_SECONDS, running
from bench.processes.idle import SETTLE_SECONDS, cpu_seconds, families_of
from bench.table import markdown

REQUESTS = 40
_SECOND = "second"


@dataclass(frozen=True, slots=True)
class Cost:
    """idle_percent: of one core. request_ms: median. request_cpu_ms: of all processes of the first model."""

    idle_percent: float
    request_ms: float
    request_cpu_ms: float


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each idle CPU is watched")


def run(seconds: float) -> str:
    manifest = yaml.safe_load(Path("llmserve.yaml").read_text())
    model = manifest["spec"]["models"]["primary"]
    manifest["spec"]["kv_cache"]["memory_gb"] = 0.5
    entry = {**model, "name": _SECOND, "disaggregated": False, "replicas": {"decode": 1}}
    with running(manifest) as cluster, httpx.Client(base_url=cluster.url, timeout=READY_SECONDS) as http:
        first = [process for family in families_of(cluster).values() for process in family]
        alone = _measure(http, model["name"], first, seconds)
        http.post("/admin/v1/models", json=entry).raise_for_status()
        beside = _measure(http, model["name"], first, seconds)
        http.delete(f"/admin/v1/models/{_SECOND}").raise_for_status()
        again = _measure(http, model["name"], first, seconds)
    return _table(alone, beside, again)


def _measure(http: httpx.Client, model: str, processes: list[psutil.Process], seconds: float) -> Cost:
    _ask(http, model)
    time.sleep(SETTLE_SECONDS)
    before = cpu_seconds(processes)
    time.sleep(seconds)
    idle = (cpu_seconds(processes) - before) / seconds
    began, before = time.monotonic(), cpu_seconds(processes)
    times = [_ask(http, model) for _ in range(REQUESTS)]
    used = cpu_seconds(processes) - before - idle * (time.monotonic() - began)
    return Cost(100 * idle, 1000 * statistics.median(times), 1000 * used / REQUESTS)


def _ask(http: httpx.Client, model: str) -> float:
    began = time.monotonic()
    body: dict[str, Any] = {"model": model, "prompt": "A second model", "max_tokens": 16, "ignore_eos": True}
    http.post("/v1/completions", json=body).raise_for_status()
    return time.monotonic() - began


def _table(alone: Cost, beside: Cost, again: Cost) -> str:
    rows = []
    for name, field in (
        ("idle, % of one core", "idle_percent"),
        ("a request, ms (median)", "request_ms"),
        ("CPU of a request, ms", "request_cpu_ms"),
    ):
        values = [getattr(cost, field) for cost in (alone, beside, again)]
        ratio = 2 * values[1] / (values[0] + values[2])
        rows.append((name, *(f"{value:.2f}" for value in values), f"{ratio:.3f}"))
    return markdown(("of the first model", "alone", "beside a second", "alone again", "ratio"), rows)
