"""What the router counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llmserve.metrics.registry import WAIT_BUCKETS_SECONDS, WatchedCounter
from llmserve.metrics.scheduler import SchedulerCollector


class RouterMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests_total = Counter(
            "router_requests_total",
            "Requests that left the router, by outcome: completed, cancelled (also withdrawn from the "
            "queue), rejected (before the queue), evicted (after the queue, before a placement), failed, "
            "replaced (it asked for another place), given_back (its apiserver's session ended first)",
            ("outcome",),
            registry=registry,
        )
        self.refusals_total = Counter(
            "router_refusals_total",
            "Requests rejected or evicted, by the class of the error",
            ("error",),
            registry=registry,
        )
        self.queued_requests = Gauge(
            "router_queued_requests", "Requests that wait for a placement", registry=registry
        )
        self.running_requests = Gauge(
            "router_running_requests", "Requests that are placed and not done", registry=registry
        )
        self.apiservers = Gauge("router_apiservers", "Open apiserver sessions", registry=registry)
        self.queue_time_seconds = Histogram(
            "request_queue_time_seconds",
            "From admission to placement, of placed requests",
            registry=registry,
            buckets=WAIT_BUCKETS_SECONDS,
        )
        self.workers = Gauge(
            "router_workers",
            "Known workers, by role and state: available, suspect, lost",
            ("role", "state"),
            registry=registry,
        )
        self.worker_interruptions_total = WatchedCounter(
            "router_worker_interruptions_total",
            "How often a known worker stopped being available without having left in order: suspect, silent, "
            "or replaced by a new process of its name",
            ("worker", "role"),
            registry=registry,
        )
        self.placements_total = Counter(
            "router_placements_total",
            "Placements of requests, by worker and the role it was placed for",
            ("worker", "role"),
            registry=registry,
        )
        self.decision_seconds = Histogram(
            "router_decision_seconds",
            "Time to decide what follows from one event",
            registry=registry,
            buckets=(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05),
        )
        self.scheduler = SchedulerCollector()
        registry.register(self.scheduler)
