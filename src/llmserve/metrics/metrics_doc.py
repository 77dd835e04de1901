"""docs/metrics.md, generated from the definitions.

python -m llmserve.metrics.metrics_doc --write docs/metrics.md
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.metrics.cluster import ClusterMetrics, TracingMetrics
from llmserve.metrics.kvmanager import EvictionAgeCollector, KVManagerMetrics
from llmserve.metrics.registry import StateCollector, WatchedCounter
from llmserve.metrics.router import RouterMetrics
from llmserve.metrics.worker import WorkerMetrics

_INTRODUCTION = """\
# Metrics

<!-- Generated: python -m llmserve.metrics.metrics_doc --write docs/metrics.md -->

Every role serves Prometheus text at `/metrics`, on a port of its own (`llmserve status --json` has the
addresses, unless `observability.metrics` is false); the apiserver also at `/metrics` of its HTTP port, which
needs no key. `llmserve up` serves all of them on one page, at `observability.port` (9400), with the labels
`cluster`, `component` (the role) and `process` (such as decode-0): [dashboards.md](dashboards.md). Times are
in seconds. With `deployment.local.single_process` router, kvmanager and apiserver have one page together.

Workers pass on the metrics of their vLLM engine beside their own, under vLLM's names and as its
documentation describes them: `vllm:num_requests_running`, `vllm:kv_cache_usage_perc`,
`vllm:inter_token_latency_seconds` and so on. On the page of `llmserve up`, `process` names the worker.
Left out is `vllm:lora_requests_info`, whose labels have no bound. To the engines a request that is
handed over is two: one token at prefill, the others at decode.
"""

_ROLES: tuple[tuple[str, Callable[[CollectorRegistry], object]], ...] = (
    ("apiserver", ApiserverMetrics),
    ("router", RouterMetrics),
    ("prefill, decode, aggregated", WorkerMetrics),
    ("kvmanager", KVManagerMetrics),
    ("apiserver, router, prefill, decode, aggregated, with tracing on", TracingMetrics),
    ("llmserve up", ClusterMetrics),
)


def markdown() -> str:
    parts = [_INTRODUCTION]
    for role, define in _ROLES:
        parts += [f"## {role}\n", "| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
        parts += [*_rows(define(CollectorRegistry())), ""]
    return "\n".join(parts)


def _rows(metrics: object) -> Iterator[str]:
    for metric in vars(metrics).values():
        if isinstance(metric, StateCollector | EvictionAgeCollector):
            yield from (_row(family, family._labelnames) for family in metric.collect())  # type: ignore[attr-defined]
        elif isinstance(metric, MetricWrapperBase | WatchedCounter):
            yield from (_row(family, metric._labelnames) for family in metric.collect())


def _row(family: Metric, labels: Sequence[str]) -> str:
    suffix = "_total" if family.type == "counter" else ""
    names = ", ".join(f"`{name}`" for name in labels)
    return f"| `{family.name}{suffix}` | {family.type} | {names} | {family.documentation} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmserve.metrics.metrics_doc", description=__doc__)
    parser.add_argument("--write", metavar="FILE", type=Path, required=True)
    parser.parse_args(arguments).write.write_text(markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
