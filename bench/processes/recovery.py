"""What users notice when the best transport dies under load: simulated engines, real transfers.

After 100 hand-overs NIXL fails for good, at once (`drop_peer`) or by never ending (`stall`). The answer of a
request that had to go on over another transport tells so in a header; its time is compared with the others'.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.cluster import running
from bench.table import markdown

REQUESTS = 400
CLIENTS = 8
PROMPT_TOKENS = 500
FAULTS = ("drop_peer", "stall")
_VARIABLE = "LLMSERVE_FAULTS"


def run() -> str:
    rows = [_row(fault, _answers(fault)) for fault in FAULTS]
    headings = (
        "NIXL after 100 hand-overs",
        "requests",
        "failed",
        "fell back",
        "p50 ms, others",
        "p99 ms, others",
        "p50 ms, fell back",
        "worst ms, fell back",
    )
    return markdown(headings, rows)


def _answers(fault: str) -> list[tuple[httpx.Response, float]]:
    manifest = yaml.safe_load(Path("examples/sim.yaml").read_text())
    manifest["spec"]["deployment"]["replicas"] = {"prefill": 1, "decode": 1}
    manifest["spec"]["scheduling"] = {"disaggregate": "always"}
    model = manifest["spec"]["models"]["primary"]["name"]
    with _environment(f"nixl: {fault}=1/1 after 100"), running(manifest) as cluster:
        url = f"{cluster.url}/v1/completions"
        with httpx.Client(timeout=60) as client, ThreadPoolExecutor(CLIENTS) as clients:
            return list(clients.map(lambda number: _ask(client, url, model, number), range(REQUESTS)))


@contextmanager
def _environment(faults: str) -> Iterator[None]:
    os.environ[_VARIABLE] = faults
    try:
        yield
    finally:
        del os.environ[_VARIABLE]


def _ask(client: httpx.Client, url: str, model: str, number: int) -> tuple[httpx.Response, float]:
    prompt = [1000 + (number * PROMPT_TOKENS + position) % 40_000 for position in range(PROMPT_TOKENS)]
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
    started = time.perf_counter()
    answer = client.post(url, json=body)
    return answer, 1000 * (time.perf_counter() - started)


def _row(fault: str, answers: list[tuple[httpx.Response, float]]) -> tuple[object, ...]:
    failed = sum(answer.status_code != 200 for answer, _ in answers)
    fell = sorted(ms for answer, ms in answers if "x-llmserve-fallback" in answer.headers)
    others = sorted(ms for answer, ms in answers if "x-llmserve-fallback" not in answer.headers)
    figures = (_at(others, 0.5), _at(others, 0.99), _at(fell, 0.5), _at(fell, 1.0))
    return fault, len(answers), failed, len(fell), *(f"{figure:.0f}" for figure in figures)


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
