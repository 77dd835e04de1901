"""Does a model with two kinds of attention say the same in a cluster as alone, whatever brings its KV?

30 greedy prompts below, at and beyond the window of Gemma 3 270M go to AsyncLLM alone, and then to a cluster
with a store: pulled and pushed, while a fault plan breaks transfers; while prefill is killed; and once more
when neither prefill nor the KV manager has anything of them but what the disk holds. float32: in bfloat16, a
prompt that is computed in other pieces may meet a near-tie. The model is fetched if it is not there (240 MB).
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import yaml

from bench.cluster import Cluster, running
from bench.gateway.alone import Alone
from bench.table import markdown
from bench.transfer.gemma import gemma_source
from llmserve.config.schema import ModelSpec
from llmserve.models import resolve

MODEL, MAX_TOKENS = "hybrid", 16
# At the window of 512 tokens, and at the ends of blocks of 128.
LENGTHS = (
    *(5, 40, 128, 129, 300, 511, 512, 513, 639, 640, 641, 767, 768, 895, 896, 897),
    *(1023, 1024, 1151, 1152, 1200, 1279, 1280, 1333, 1407, 1408, 1500, 1600, 700, 900),
)
KILLED = (701, 1281, 1410, 1501)  # asked while prefill is killed, and only then
STORED = (640, 897, 1152, 1333)
PUSHED_TOKENS = 1000  # longer prompts are pushed
FAULTS = "nixl: fail_poll=1/12, corrupt=1/12, seed=5"
_MAX_MODEL_LEN = 2048
_BACK_SECONDS = 600.0
Row = tuple[object, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", help="another model, as in the manifest; its window may be another")


def run(source: str | None) -> str:
    source = source or gemma_source()
    prompts = _prompts()
    model = str(resolve(ModelSpec.model_validate({"source": source})).path)
    expected = _alone(model, prompts)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="llmserve-hybrid-") as disk,
        patch.dict(os.environ, LLMSERVE_FAULTS=FAULTS),
        running(_manifest(source, disk)) as cluster,
    ):
        asked = _Asked(cluster, prompts, expected)
        for case in (_handed_over, _killed, _stored):
            rows += case(asked)
            print(*rows[-1], file=sys.stderr, flush=True)
    return markdown(("prompts", "asked", "as alone", "how their KV came"), rows)


def _prompts() -> dict[int, list[int]]:
    """By length."""
    rng = random.Random(5)
    lengths = (*LENGTHS, *KILLED)
    return {length: [2, *(rng.randint(300, 20_000) for _ in range(length - 1))] for length in lengths}


def _alone(model: str, prompts: dict[int, list[int]]) -> dict[int, list[int]]:
    alone = Alone(model, _MAX_MODEL_LEN, core=0, dtype="float32")
    try:
        return {length: alone.measure(prompt, MAX_TOKENS)["tokens"] for length, prompt in prompts.items()}
    finally:
        alone.close()


def _manifest(source: str, disk: str) -> dict[str, Any]:
    """The device has room for a few prompts. Long ones are computed in pieces, between which windows move."""
    manifest: dict[str, Any] = yaml.safe_load(Path("llmserve.yaml").read_text())
    manifest["spec"] |= {
        "models": {"primary": {"source": source, "name": MODEL}},
        "engine": {
            "device": "cpu",
            "max_model_len": _MAX_MODEL_LEN,
            "dtype": "float32",
            "max_batched_tokens": 512,
        },
        "kv_cache": {"memory_gb": 0.25},
        "scheduling": {"disaggregate": "always", "queue_timeout_seconds": _BACK_SECONDS},
        "transfer": {"engine_order": ["nixl"], "push_min_tokens": PUSHED_TOKENS, "verify": "always"},
        "storageClasses": [
            {"name": "memory", "tier": "dram", "capacity_gb": 1},
            {"name": "disk", "tier": "nvme", "capacity_gb": 2, "location": disk, "write": "through"},
        ],
    }
    return manifest


@dataclass(slots=True)
class _Asked:
    """answers: how the KV of each came, of those asked last."""

    cluster: Cluster
    prompts: dict[int, list[int]]
    expected: dict[int, list[int]]
    ways: list[str] = field(default_factory=list)

    def row(self, name: str, lengths: Sequence[int], at_once: int = 1) -> Row:
        self.ways = []
        with ThreadPoolExecutor(at_once) as pool:
            right = list(pool.map(self._is_right, lengths))
        counts = {way: self.ways.count(way) for way in sorted(set(self.ways))}
        wrong = [length for length, one in zip(lengths, right, strict=True) if not one]
        said = f"{sum(right)} of {len(right)}" + (f"; not: {wrong}" if wrong else "")
        return name, len(lengths), said, ", ".join(f"{count} {way}" for way, count in counts.items())

    def _is_right(self, length: int) -> bool:
        body = {"model": MODEL, "prompt": self.prompts[length], "max_tokens": MAX_TOKENS, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        answer = httpx.post(f"{self.cluster.url}/v1/completions", json=body, timeout=600).raise_for_status()
        headers = (answer.headers.get(f"x-llmserve-{name}") for name in ("handover", "transport"))
        self.ways.append(" ".join(filter(None, headers)) or "computed at decode")
        found: list[int] = answer.json()["choices"][0]["token_ids"]
        return found == self.expected[length]


def _handed_over(asked: _Asked) -> list[Row]:
    short = [length for length in LENGTHS if length < PUSHED_TOKENS]
    long = [length for length in LENGTHS if length >= PUSHED_TOKENS]
    return [asked.row("short", short), asked.row("long", long)]


def _killed(asked: _Asked) -> list[Row]:
    old = asked.cluster.pid("prefill-0")
    with ThreadPoolExecutor(1) as pool:
        row = pool.submit(asked.row, "while prefill is killed", KILLED, len(KILLED))
        _until(lambda: asked.cluster.metrics("prefill-0")["worker_requests_running"] > 0, 60)
        os.kill(old, signal.SIGKILL)
        answered = row.result()
    _until(lambda: _is_back(asked.cluster, "prefill-0", old), _BACK_SECONDS)
    return [answered]


def _stored(asked: _Asked) -> list[Row]:
    """The engines and the KV manager's memory have forgotten them."""
    for name in ("kvmanager-0", "prefill-0", "decode-0"):
        _kill(asked.cluster, name)
    row = asked.row("after a restart", STORED)
    loaded = asked.cluster.metrics("prefill-0")['worker_prompt_tokens_total{source="external"}']
    return [(*row[:-1], f"{row[-1]}; {loaded:.0f} of {sum(STORED)} tokens from the disk")]


def _kill(cluster: Cluster, name: str) -> None:
    """Returns when the supervisor has another."""
    old = cluster.pid(name)
    os.kill(old, signal.SIGKILL)
    _until(lambda: _is_back(cluster, name, old), _BACK_SECONDS)


def _is_back(cluster: Cluster, name: str, old: int) -> bool:
    role = cluster.role(name)
    return bool(role["pid"] != old and role["stand"] == "ready")


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.1)
