"""Time to first token and inter-token time: the cluster against AsyncLLM alone on one core.

The two take turns, prompt by prompt, so that a slow moment of the machine hits both. The engine alone rests
before the cluster's turn: its worker spins on the core of the cluster's prefill for a second.

The cluster's client is ready before its request, as the engine alone is: making one costs more CPU time
than the cluster's own part of a short prompt's first token.

Of each first token, the CPU time of the thread that computes it is said too, and how long that thread waited
for its core.
"""

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.cluster import Cluster, running
from bench.gateway.alone import Alone
from bench.gateway.computing import Computing, ComputingThread
from bench.table import Figure, markdown

PROMPT_TOKENS = (200, 1000)
OUTPUT_TOKENS = 64
# By the name that the table has: seconds.
_FIGURES = {
    "time to first token": "ttft",
    "CPU time of its step": "computed",
    "its step waits for its core": "waited",
    "inter-token time": "gap",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=9, help="pairs of prompts of each length")


def run(repeats: int) -> str:
    manifest = yaml.safe_load(Path("llmserve.yaml").read_text())
    name, max_len = manifest["spec"]["models"]["primary"]["name"], manifest["spec"]["engine"]["max_model_len"]
    with running(manifest) as cluster, httpx.Client(base_url=cluster.url, timeout=120) as client:
        alone = Alone(cluster.state()["model_dir"], max_len, core=0)
        try:
            return _table(alone, _Served(cluster, client, name), repeats)
        finally:
            alone.close()


@dataclass(frozen=True, slots=True)
class _Served:
    """A cluster, the client that asks it, and the name of its model."""

    cluster: Cluster
    client: httpx.Client
    model: str


def _table(alone: Alone, served: _Served, repeats: int) -> str:
    rows = []
    for length in PROMPT_TOKENS:
        _pair(alone, served, length)  # warm both
        pairs = [_pair(alone, served, length) for _ in range(repeats)]
        for name, key in _FIGURES.items():
            base = Figure.of([one[key] for one, _ in pairs])
            ours = Figure.of([two[key] for _, two in pairs])
            ratio = "" if key == "waited" else f"{ours.median / base.median:.2f}"
            rows.append((name, length, base.text(), ours.text(), ratio))
    return markdown(("seconds", "prompt tokens", "AsyncLLM alone", "cluster", "ratio"), rows)


def _pair(alone: Alone, served: _Served, length: int) -> tuple[dict[str, float], dict[str, float]]:
    """Two prompts of one length, never seen before by any cache."""
    base = alone.measure(_prompt(length), OUTPUT_TOKENS)
    alone.rest()
    ours = _through_cluster(served, _prompt(length))
    return _summary(base["ttft"], base["gaps"], Computing(base["computed"], base["waited"])), ours


def _summary(ttft: float, gaps: list[float], first: Computing) -> dict[str, float]:
    return {
        "ttft": ttft,
        "gap": statistics.fmean(gaps),
        "computed": first.cpu,
        "waited": first.waited,
    }


def _prompt(length: int) -> list[int]:
    return [random.randrange(1000, 40_000) for _ in range(length)]


def _through_cluster(served: _Served, prompt: list[int]) -> dict[str, float]:
    body: dict[str, Any] = {
        "model": served.model,
        "prompt": prompt,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    computing = ComputingThread(served.cluster.pid("prefill-0"))
    started = time.perf_counter()
    with served.client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        times = _token_times(response.iter_lines())
        first = next(times)
        computed = computing.so_far()
        arrivals = [first, *times]
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    return _summary(first - started, gaps, computed)


def _token_times(lines: Iterator[str]) -> Iterator[float]:
    for line in lines:
        if line.startswith("data: {"):
            yield time.perf_counter()
