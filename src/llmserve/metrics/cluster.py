"""What `llmserve up` counts of the processes that it runs, and what becomes of spans."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from llmserve.metrics.registry import WatchedCounter


class ClusterMetrics:
    """Metrics that only the page of the whole cluster has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.process_up = Gauge(
            "cluster_process_up",
            "1: the process is ready and has answered with its metrics",
            ("cluster", "component", "process"),
            registry=registry,
        )
        self.process_restarts_total = WatchedCounter(
            "cluster_process_restarts_total",
            "How often the process was started again",
            ("cluster", "component", "process"),
            registry=registry,
        )
        self.process_hangs_total = WatchedCounter(
            "cluster_process_hangs_total",
            "How often the process was killed because it did not answer",
            ("cluster", "component", "process"),
            registry=registry,
        )


class CertificateMetrics:
    """Each process shows the certificate that it uses, and `llmserve up` all files of a cluster."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.expires = Gauge(
            "cluster_certificate_expires_timestamp_seconds",
            "Unix time at which a certificate expires: that of a role (`security.mtls`), or `http` "
            "(`security.tls`)",
            ("certificate",),
            registry=registry,
        )


class TracingMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.spans_total = Counter(
            "trace_spans_total",
            "Spans that ended, by what became of them: sent, dropped (the endpoint of "
            "`observability.tracing` is away or slow)",
            ("result",),
            registry=registry,
        )
