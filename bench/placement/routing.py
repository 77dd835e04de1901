"""Where requests go, and what that saves: KV-aware routing against the baselines, on the same trace.

`llmserve simulate`'s cluster: the router's own code with simulated engines in virtual time, so the figures
depend on the seed and not on this machine.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from bench.table import markdown
from llmserve.config.schema import Manifest
from llmserve.simulate.report import Goals, SimReport
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import ClusterShape, Overrides
from llmserve.traces import TracedRequest

_SYSTEM_PROMPTS = 20
_SYSTEM_TOKENS = 2048
_REQUESTS = 1000
_ROUTINGS = ("round_robin", "least_loaded", "kv_aware")
# A worker's cache holds the prompts of some, not of all: 20 of them take 2,560 blocks.
_BLOCKS = 1400
_SIM = {
    "prefill_tokens_per_second": 10_000,
    "decode_step_seconds": 0.015,
    "decode_seconds_per_sequence": 0.0002,
    "block_size_tokens": 16,
}
# Of an 8B model, over a link of 2 GB/s.
_KV_BYTES, _GBPS = 128 * 1024, 16.0


def shared_prefixes(
    requests: int,
    per_second: float,
    *,
    prompts: int = _SYSTEM_PROMPTS,
    tokens: int = _SYSTEM_TOKENS,
    seed: int = 7,
) -> list[TracedRequest]:
    """Each request is one of the system prompts, and 32 to 256 tokens of its user; answers of 16 to 128."""
    rng, at, made = random.Random(seed), 0.0, []
    for _ in range(requests):
        at += rng.expovariate(per_second)
        names, user, answer = (rng.randrange(prompts),), rng.randint(32, 256), rng.randint(16, 128)
        made.append(
            TracedRequest(
                at,
                tokens + user,
                answer,
                max_output_tokens=answer,
                prefix_names=names,
                run_tokens=tokens,
            )
        )
    return made


PAIRS = {"replicas": {"prefill": 4, "decode": 4}}


def cluster(blocks: int = _BLOCKS, **scheduling: Any) -> ClusterShape:
    """Four prefill and four decode workers. All KV is pushed, so that routing alone makes a difference.
    scheduling: that section of the manifest."""
    overrides = Overrides(kv_bytes_per_token=_KV_BYTES, transfer_gbps=_GBPS)
    return cluster_of(PAIRS, blocks, overrides, scheduling=scheduling, transfer={"mode": "push"})


def cluster_of(
    deployment: Mapping[str, Any], blocks: int, overrides: Overrides, **sections: Mapping[str, Any]
) -> ClusterShape:
    """sections: others of the manifest."""
    manifest = Manifest.model_validate(
        {
            "kind": "LLMServe",
            "models": {"primary": {"source": "dir:/nowhere", "name": "m"}},
            "deployment": deployment,
            "engine": {"kind": "sim", "max_decode_concurrency": 32, "sim": {**_SIM, "blocks": blocks}},
            **sections,
        }
    )
    return ClusterShape.of(manifest, overrides)


def simulated(shape: ClusterShape, requests: Sequence[TracedRequest], seed: int = 1) -> SimReport:
    simulation = Simulation(shape, requests, seed=seed)
    simulation.run()
    simulation.check_integrity()
    report = simulation.report(Goals())
    assert report.served == len(requests), report.refusals
    return report


def computed_tokens(report: SimReport) -> int:
    """Of prompts, over all workers."""
    return sum(line.prefill_tokens for line in report.workers)


def largest_share(report: SimReport, role: str) -> float:
    """Of all placements of that role, as a multiple of the fair share."""
    counts = [line.requests for line in report.workers if line.worker.startswith(role)]
    return max(counts) * len(counts) / sum(counts) if any(counts) else 0.0


def run() -> str:
    headings = (
        *("requests/s", "routing", "prompt tokens computed", "first token p50 s", "p99 s"),
        *("on one worker", "largest share of prefill"),
    )
    rows = [row for rate in (8.0, 16.0) for row in _rows(rate)]
    return markdown(headings, rows)


def _rows(rate: float) -> list[tuple[object, ...]]:
    requests = shared_prefixes(_REQUESTS, rate)
    prompts = sum(request.prompt_tokens for request in requests)
    return [
        (f"{rate:g}", routing, *_cells(simulated(cluster(routing=routing), requests), prompts))
        for routing in _ROUTINGS
    ]


def _cells(report: SimReport, prompt_tokens: int) -> tuple[str, ...]:
    return (
        f"{computed_tokens(report) / prompt_tokens:.1%}",
        f"{report.first_token.p50:.3f}",
        f"{report.first_token.p99:.3f}",
        f"{report.on_one_worker:.1%}",
        f"{largest_share(report, 'prefill'):.2f} x fair",
    )
