"""Writes the files that follow from the definitions of this package: docs/metrics.md, docs/panels.md, the
dashboards as Grafana's JSON, and the rules of Prometheus.

python -m llmserve.metrics.generate ROOT
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from llmserve.metrics.apiserver import (
    ApiserverMetrics,
    AttemptMetrics,
    BatchMetrics,
    RequestMetrics,
    TokenMetrics,
)
from llmserve.metrics.cluster import CertificateMetrics, ClusterMetrics, TracingMetrics
from llmserve.metrics.dashboards import DASHBOARDS, Dashboard, rules_text
from llmserve.metrics.dashboards.panels import text
from llmserve.metrics.kvmanager import EvictionAgeCollector, KVManagerMetrics
from llmserve.metrics.registry import StateCollector, WatchedCounter
from llmserve.metrics.router import (
    MembershipMetrics,
    PlacementMetrics,
    PrefixMetrics,
    RegistrationMetrics,
    RouterMetrics,
)
from llmserve.metrics.worker import AdapterMetrics, EngineMetrics, SpeculationMetrics, WorkerMetrics


def generated() -> Mapping[str, str]:
    """Returns the text of each generated file, by its path in the repository."""
    return {
        "docs/metrics.md": metrics_markdown(),
        "docs/panels.md": panels_markdown(),
        "deploy/prometheus/llmserve.rules.yml": rules_text(),
        **{f"deploy/grafana/dashboards/{one.uid}.json": text(one) for one in DASHBOARDS},
    }


_METRICS_PAGE = """\
# Metrics

<!-- Generated: python -m llmserve.metrics.generate -->

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
    ("apiserver: requests", RequestMetrics),
    ("apiserver: tokens", TokenMetrics),
    ("apiserver: hand-overs, failures and retries", AttemptMetrics),
    ("apiserver: batches", BatchMetrics),
    ("apiserver", ApiserverMetrics),
    ("router", RouterMetrics),
    ("router: workers", MembershipMetrics),
    ("router: placements", PlacementMetrics),
    ("router: cached prompts", PrefixMetrics),
    ("router: LoRA adapters", RegistrationMetrics),
    ("prefill, decode, aggregated", WorkerMetrics),
    ("prefill, decode, aggregated: engine", EngineMetrics),
    ("decode, aggregated: speculation", SpeculationMetrics),
    ("prefill, decode, aggregated: LoRA adapters", AdapterMetrics),
    ("kvmanager", KVManagerMetrics),
    ("apiserver, router, prefill, decode, aggregated, with tracing on", TracingMetrics),
    ("every process with `security.mtls`; llmserve up", CertificateMetrics),
    ("llmserve up", ClusterMetrics),
)


def metrics_markdown() -> str:
    parts = [_METRICS_PAGE]
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


_PANELS_PAGE = """\
# Panels

<!-- Generated: python -m llmserve.metrics.generate -->

What each panel of the dashboards shows; Grafana shows the same words beside a panel's title. How to get the
dashboards, pictures of them, and the alerts: [dashboards.md](dashboards.md).
"""


def panels_markdown() -> str:
    return "\n".join([_PANELS_PAGE, *(line for dashboard in DASHBOARDS for line in _panel_lines(dashboard))])


def _panel_lines(dashboard: Dashboard) -> Iterator[str]:
    yield from (f"## {dashboard.title.partition(': ')[2].capitalize()}\n", f"{dashboard.description}\n")
    for section in dashboard.sections:
        yield from (f"### {section.title}\n", "| Panel | What it shows |", "|---|---|")
        yield from (f"| {panel.title} | {panel.description} |" for panel in section.panels)
        yield ""


def write(root: Path) -> None:
    for path, content in generated().items():
        (root / path).write_text(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
