"""`llmserve bench` and `vllm bench serve` on the same load, in turns: do their figures agree?

A cluster of simulated engines with fixed timing, so that nothing but the two clients differs. vLLM's own
command does not start with its CPU build (it looks for another package name), so its main is called.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.cluster import Cluster, running
from bench.table import Figure, markdown

PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 512, 32, 40
_VLLM = (
    "import sys; from vllm.utils.argparse_utils import FlexibleArgumentParser as P; "
    "from vllm.benchmarks.serve import add_cli_args, main; p = P(); add_cli_args(p); "
    "main(p.parse_args(sys.argv[1:]))"
)
Figures = dict[str, float]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")


def run(repeats: int) -> str:
    manifest = yaml.safe_load(Path("examples/sim.yaml").read_text())
    spec = manifest["spec"]
    spec["deployment"]["replicas"] = {"prefill": 1, "decode": 1}
    slow = {"prefill_tokens_per_second": 4000, "decode_step_seconds": 0.03, "decode_seconds_per_sequence": 0}
    spec["engine"]["sim"].update(slow)
    with running(manifest) as cluster:
        rows = [*_rows(cluster, repeats, is_closed=True), *_rows(cluster, repeats, is_closed=False)]
    return markdown(("load", "figure", "vllm bench serve", "llmserve bench", "difference"), rows)


def _rows(cluster: Cluster, rounds: int, *, is_closed: bool) -> list[tuple[str, ...]]:
    """Rounds in turns; of each figure the medians over the rounds."""
    name = "closed loop, 4 users" if is_closed else "open loop, 4/s"
    theirs: list[Figures] = []
    ours: list[Figures] = []
    for number in range(rounds):
        seed = 2 * number + is_closed  # prompts that were sent before would come from the cache
        theirs.append(_vllm(cluster, is_closed, seed))
        ours.append(_llmserve(cluster, is_closed, 100 + seed))
        print(f"{name}, round {number + 1} of {rounds}", file=sys.stderr)
    rows: list[tuple[str, ...]] = []
    for figure in theirs[0]:
        base = Figure.of([one[figure] for one in theirs])
        mine = Figure.of([one[figure] for one in ours])
        rows.append((name, figure, base.text(1), mine.text(1), f"{mine.median / base.median - 1:+.1%}"))
    return rows


def _vllm(cluster: Cluster, is_closed: bool, seed: int) -> Figures:
    state = cluster.state()
    rate = ("--max-concurrency", "4") if is_closed else ("--request-rate", "4", "--burstiness", "1e9")
    with tempfile.TemporaryDirectory() as folder:
        _output(
            *(sys.executable, "-c", _VLLM, "--backend", "openai", "--base-url", cluster.url),
            *("--model", state["model"], "--tokenizer", state["model_dir"], "--dataset-name", "random"),
            *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)),
            *(
                "--num-prompts",
                str(REQUESTS),
                "--seed",
                str(seed),
                "--ignore-eos",
                "--num-warmups",
                "4",
                *rate,
            ),
            *(
                "--percentile-metrics",
                "ttft,tpot,itl,e2el",
                "--metric-percentiles",
                "50,90",
                "--temperature",
                "0",
            ),
            *("--save-result", "--result-dir", folder, "--result-filename", "result.json", "--disable-tqdm"),
        )
        found: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    assert found["completed"] == REQUESTS, "some of vllm's requests failed"
    names = {
        "ttft": "time to first token",
        "itl": "between tokens",
        "tpot": "per output token",
        "e2el": "end to end",
    }
    figures = {
        f"{names[key]}, {how} ms": float(found[f"{how}_{key}_ms"])
        for key in names
        for how in ("mean", "median", "p90")
    }
    return {
        **figures,
        "output tokens per second": float(found["output_throughput"]),
        "requests per second": float(found["request_throughput"]),
    }


def _llmserve(cluster: Cluster, is_closed: bool, seed: int) -> Figures:
    rate = ("--concurrency", "4") if is_closed else ("--rate", "4", "--burstiness", "0")
    output = _output(
        *(sys.executable, "-m", "llmserve.cli", "bench", "--url", cluster.url, "--json", "--seed", str(seed)),
        *("--mix", f"{PROMPT_TOKENS}/{OUTPUT_TOKENS}:1", "--requests", str(REQUESTS), *rate),
    )
    found: dict[str, Any] = json.loads(output)
    assert found["served"] == REQUESTS, found["failures"]
    names = {
        "ttft": "time to first token",
        "itl": "between tokens",
        "tpot": "per output token",
        "e2e": "end to end",
    }
    figures = {
        f"{names[key]}, {how} ms": 1000 * float(found[key][field])
        for key in names
        for how, field in (("mean", "mean"), ("median", "p50"), ("p90", "p90"))
    }
    return {
        **figures,
        "output tokens per second": float(found["output_tokens_per_second"]),
        "requests per second": float(found["requests_per_second"]),
    }


def _output(*command: str) -> str:
    """Errors: RuntimeError with the end of what it said."""
    arguments: Sequence[str] = command
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout
