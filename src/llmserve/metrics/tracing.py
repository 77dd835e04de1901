"""What becomes of spans. Only where tracing is on."""

from prometheus_client import CollectorRegistry, Counter


class TracingMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.spans_total = Counter(
            "trace_spans_total",
            "Spans that ended, by what became of them: sent, dropped (the endpoint of "
            "`observability.tracing` is away or slow)",
            ("result",),
            registry=registry,
        )
