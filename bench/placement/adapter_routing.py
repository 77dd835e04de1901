"""Where requests of 1,000 adapters go, and how long they wait: the router against "prefer loaded" and least
loaded, which know no cost of a load.

`llmserve simulate`'s cluster of 8 workers: each computes whole requests, or prompts or answers. Adapters
are drawn by Zipf's law with 1.0. The figures depend on the seed and not on this machine.
"""

import random
import statistics
from dataclasses import replace
from typing import Any

from bench.placement.routing import PAIRS, cluster_of, largest_share
from bench.placement.routing import simulated as routed
from bench.table import markdown
from llmserve.core.ids import DEFAULT_TENANT
from llmserve.router.placement.rules import Routing
from llmserve.simulate.adapters import with_adapters
from llmserve.simulate.mix import RequestKind, RequestMix
from llmserve.simulate.report import SimReport
from llmserve.simulate.shape import ClusterShape, Overrides

_ADAPTERS, _SKEW = 1000, 1.0
_SLOTS, _IN_MEMORY = 8, 140  # versions of 30 MB: 4 GiB of memory
_PER_SECOND = 40.0
_SEEDS = range(1, 6)
_ROUTINGS: tuple[Routing, ...] = ("prefer_loaded", "least_loaded", "kv_aware")
_BLOCKS = 20_000
_WHOLE = {"disaggregated": False, "replicas": {"decode": 8}}


def cluster(deployment: dict[str, Any], **scheduling: Any) -> ClusterShape:
    scheduling = {"queue_timeout_seconds": 600, "max_queued_requests": 100_000, **scheduling}
    shape = cluster_of(deployment, _BLOCKS, Overrides(), scheduling=scheduling)
    return replace(shape, adapters=replace(shape.adapters, slots=_SLOTS, in_memory=_IN_MEMORY))


def simulated(
    routing: Routing,
    *,
    seconds: float,
    per_second: float = _PER_SECOND,
    deployment: dict[str, Any] | None = None,
    slots: int = _SLOTS,
    adapters: int = _ADAPTERS,
    seed: int = 1,
    **scheduling: Any,
) -> SimReport:
    """Prompts of 500 to 1,500 tokens, answers of 15 to 45."""
    shape = cluster(deployment or _WHOLE, **scheduling)
    router = replace(shape.router, routing=routing)
    shape = replace(shape, router=router, adapters=replace(shape.adapters, slots=slots))
    rng = random.Random(seed)
    mix = RequestMix([(RequestKind(1000, 30), 1.0)], [(DEFAULT_TENANT, 1.0)], per_second, seconds)
    requests = with_adapters(mix.requests(rng), adapters, _SKEW, rng)
    return routed(shape, requests, seed)


def hot_spot(report: SimReport) -> float:
    """The largest number of requests that a worker got, as a multiple of the fair share of its role."""
    return max(largest_share(report, role) for role in ("prefill", "decode", "aggregated"))


def run() -> str:
    times = ("first token p50 s", "p99 s", "queue p99 s")
    headings = ("cluster", "requests/s", "routing", *times, "largest share, x fair")
    rows = [_row("8 workers", _WHOLE, _PER_SECOND, routing) for routing in _ROUTINGS]
    rows += [_row("4 + 4, pairs", PAIRS, 25.0, name, seconds=120.0) for name in _ROUTINGS]
    packing = [_packing(seconds) for seconds in (0.0, 2.0, 10.0)]
    table = markdown(("adapter_packing s", "first token p50 s", "p99 s", "requests/s"), packing)
    return f"{markdown(headings, rows)}\n\nMore than four slots a worker can serve, 55 requests/s:\n\n{table}"


def _row(
    name: str, deployment: dict[str, Any], per_second: float, routing: Routing, seconds: float = 60.0
) -> tuple[object, ...]:
    """Medians over the seeds, with the least and the most."""
    reports = [
        simulated(routing, seconds=seconds, per_second=per_second, deployment=deployment, seed=seed)
        for seed in _SEEDS
    ]
    values = (
        [report.first_token.p50 for report in reports],
        [report.first_token.p99 for report in reports],
        [report.queue.p99 for report in reports],
        [hot_spot(report) for report in reports],
    )
    texts = (f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in values)
    return (name, f"{per_second:g}", routing, *texts)


def _packing(seconds: float) -> tuple[object, ...]:
    report = simulated("kv_aware", seconds=30.0, per_second=55.0, slots=4, adapter_packing=seconds)
    first = report.first_token
    return (f"{seconds:g}", f"{first.p50:.2f}", f"{first.p99:.2f}", f"{report.requests_per_second:.1f}")
