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
        self.leads = Gauge(
            "router_leads", "1 while this router decides; of several routers one does", registry=registry
        )
        self.queue_time_seconds = Histogram(
            "request_queue_time_seconds",
            "From admission to placement, of placed requests",
            registry=registry,
            buckets=WAIT_BUCKETS_SECONDS,
        )
        self.workers = Gauge(
            "router_workers",
            "Known workers, by role and state: available, suspect, draining, lost",
            ("role", "state"),
            registry=registry,
        )
        self.slow_workers = Gauge(
            "router_slow_workers",
            "Workers that are avoided because the others of their role are faster",
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
        self.index_blocks = Gauge(
            "router_prefix_index_blocks",
            "Blocks of which the router knows who holds them, once for each KV manager that it follows",
            registry=registry,
        )
        self.index_kvmanagers = Gauge(
            "router_prefix_index_kvmanagers",
            "KV managers, by state: followed, away (what they alone hold is not known)",
            ("state",),
            registry=registry,
        )
        self.prefix_proof = Gauge(
            "router_prefix_proof",
            "1 for what is proven of cache-aware routing, from the requests that have run: unproven (nothing "
            "has run yet, or no blocks are reported), matches, differs (a worker hashes blocks differently "
            "than the apiserver, so what it has cached is never found)",
            ("state",),
            registry=registry,
        )
        self.predicted_cached_tokens_total = Counter(
            "router_predicted_cached_tokens_total",
            "Prompt tokens that were expected to be cached where the prefill ran, of requests whose engine "
            "told how many were",
            registry=registry,
        )
        self.actual_cached_tokens_total = Counter(
            "router_actual_cached_tokens_total",
            "Prompt tokens of the same requests that were cached",
            registry=registry,
        )
        self.cached_tokens_error_ratio = Histogram(
            "router_cached_tokens_error_ratio",
            "Cached tokens expected and found, their difference as a share of the prompt, by which was more: "
            "exact (neither), expected, found",
            ("more",),
            registry=registry,
            buckets=(0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0),
        )
        self.decision_seconds = Histogram(
            "router_decision_seconds",
            "Time to decide what follows from one event",
            registry=registry,
            buckets=(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05),
        )
        self.placement_kinds_total = Counter(
            "router_placement_kinds_total",
            "Placements, by kind: disaggregated (prefill and decode on two workers), single (one for both)",
            ("kind",),
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "router_first_token_seconds",
            "From placement to first token",
            registry=registry,
            buckets=WAIT_BUCKETS_SECONDS,
        )
        self.predicted_first_token_seconds = Histogram(
            "router_predicted_first_token_seconds",
            "What router_first_token_seconds was predicted to be, where scheduling.routing is kv_aware",
            registry=registry,
            buckets=WAIT_BUCKETS_SECONDS,
        )
        self.first_token_error_seconds = Histogram(
            "router_first_token_error_seconds",
            "How far predicted and measured time to first token were apart",
            registry=registry,
            buckets=WAIT_BUCKETS_SECONDS,
        )
        self.scheduler = SchedulerCollector()
        registry.register(self.scheduler)
