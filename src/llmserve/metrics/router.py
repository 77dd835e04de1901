"""What the router counts, and its scheduler's state as it is when it is scraped."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llmserve.core.stats import SchedulerStats, TenantStats
from llmserve.metrics.registry import (
    WAIT_BUCKETS_SECONDS,
    StateCollector,
    StateFamily,
    StateRows,
    WatchedCounter,
)

_Family = StateFamily[SchedulerStats]


_CLUSTER: StateRows[SchedulerStats, SchedulerStats] = StateRows((), lambda stats: [stats], lambda stats: ())
_TENANTS: StateRows[SchedulerStats, TenantStats] = StateRows(
    ("tenant",), lambda stats: stats.tenants, lambda tenant: (tenant.tenant,)
)

_SCHEDULER_FAMILIES: tuple[_Family, ...] = (
    _CLUSTER.family(
        "router_queue_limit_requests",
        "Requests that may wait; one more is refused",
        lambda stats: stats.queue_limit_requests,
    ),
    _CLUSTER.family(
        "router_tokens_in_flight",
        "Prompt tokens to compute and expected answer tokens of all that runs",
        lambda stats: stats.tokens_in_flight,
    ),
    _CLUSTER.family(
        "router_kv_bytes_in_flight",
        "KV of all that runs: prompt and expected answer",
        lambda stats: stats.kv_bytes_in_flight,
    ),
    StateFamily(
        "router_budget_used_ratio",
        "How much of a budget of the cluster is taken; at 1 nothing is dispatched that needs it",
        ("budget",),
        lambda stats: (((one.name,), one.used_ratio) for one in stats.budgets if one.used_ratio is not None),
    ),
    StateFamily(
        "router_budget_refusals_total",
        "Requests rejected or evicted while the budget had no room; each counts for all that had none",
        ("budget",),
        lambda stats: (((one.name,), one.refused) for one in stats.budgets),
    ),
    _TENANTS.family(
        "router_tenant_weight", "Its share, against 1 of a tenant that is not named", lambda one: one.weight
    ),
    _TENANTS.family(
        "router_tenant_queued_requests", "Its requests that wait for a placement", lambda one: one.waiting
    ),
    _TENANTS.family(
        "router_tenant_running_requests", "Its requests that are placed and not done", lambda one: one.running
    ),
    _TENANTS.family(
        "router_tenant_dispatched_total", "Its requests that got a place", lambda one: one.dispatched
    ),
    _TENANTS.family(
        "router_tenant_refusals_total", "Its requests rejected or evicted", lambda one: one.refused
    ),
    _TENANTS.family(
        "router_tenant_queue_seconds_total",
        "How long those waited that got a place",
        lambda one: one.queue_seconds,
    ),
    _TENANTS.family(
        "router_tenant_served_tokens_total",
        "Computed prompt tokens and answer tokens of its requests that ended",
        lambda one: one.served_tokens,
    ),
)


class PlacementMetrics:
    """What the router decides, and how right its predictions of the first token are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.placed_total = counter(
            "router_placements_total",
            "Placements of requests, by worker and the role it was placed for",
            ("worker", "role"),
        )
        self.kinds_total = counter(
            "router_placement_kinds_total",
            "Placements, by kind: disaggregated (prefill and decode on two workers), single (one for both)",
            ("kind",),
        )
        self.decision_seconds = histogram(
            "router_decision_seconds",
            "Time to decide what follows from one event",
            buckets=(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05),
        )
        self.first_token_seconds = histogram(
            "router_first_token_seconds", "From placement to first token", buckets=WAIT_BUCKETS_SECONDS
        )
        self.predicted_first_token_seconds = histogram(
            "router_predicted_first_token_seconds",
            "What router_first_token_seconds was predicted to be, where scheduling.routing is kv_aware",
            buckets=WAIT_BUCKETS_SECONDS,
        )
        self.first_token_error_seconds = histogram(
            "router_first_token_error_seconds",
            "How far predicted and measured time to first token were apart",
            buckets=WAIT_BUCKETS_SECONDS,
        )


class PrefixMetrics:
    """What the router knows of cached prompts, and how right it is about them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.blocks = gauge(
            "router_prefix_index_blocks",
            "Blocks of which the router knows who holds them, once for each KV manager that it follows",
        )
        self.kvmanagers = gauge(
            "router_prefix_index_kvmanagers",
            "KV managers, by state: followed, away (what they alone hold is not known)",
            ("state",),
        )
        self.proof = gauge(
            "router_prefix_proof",
            "1 for what is proven of cache-aware routing, from the requests that have run: unproven (nothing "
            "has run yet, or no blocks are reported), matches, differs (a worker hashes blocks differently "
            "than the apiserver, so what it has cached is never found)",
            ("state",),
        )
        self.predicted_cached_tokens_total = counter(
            "router_predicted_cached_tokens_total",
            "Prompt tokens that were expected to be cached where the prefill ran, of requests whose engine "
            "told how many were",
        )
        self.actual_cached_tokens_total = counter(
            "router_actual_cached_tokens_total", "Prompt tokens of the same requests that were cached"
        )
        self.cached_tokens_error_ratio = histogram(
            "router_cached_tokens_error_ratio",
            "Cached tokens expected and found, their difference as a share of the prompt, by which was more: "
            "exact (neither), expected, found",
            ("more",),
            buckets=(0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0),
        )


class RegistrationMetrics:
    """What becomes of adapters."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        self.adapters = gauge(
            "router_adapters",
            "Adapters, by state: registered (no worker fetches it), fetching, ready (requests may use it), "
            "draining (the last requests use it), failed",
            ("state",),
        )
        self.loads_total = counter(
            "router_adapter_loads_total",
            "Loads of adapters that ended, by outcome: ready, failed, given_up (it was unloaded, or loaded "
            "again, before it was ready)",
            ("outcome",),
        )
        self.fetch_failures_total = counter(
            "router_adapter_fetch_failures_total",
            "How often a worker could not fetch an adapter, and is to try again",
        )
        self.prefetches_total = counter(
            "router_adapter_prefetches_total",
            "How often a worker was told to bring an adapter into memory while a request for it waits",
        )


class MembershipMetrics:
    """Which workers the router knows, and how they are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(Gauge, registry=registry)
        self.workers = gauge(
            "router_workers",
            "Known workers, by role and state: available, suspect, fetching (adapters that it needs first), "
            "draining, lost",
            ("role", "state"),
        )
        self.slow_workers = gauge(
            "router_slow_workers", "Workers that are avoided because the others of their role are faster"
        )
        self.worker_interruptions_total = WatchedCounter(
            "router_worker_interruptions_total",
            "How often a known worker stopped being available without having left in order: suspect, silent, "
            "or replaced by a new process of its name",
            ("worker", "role"),
            registry=registry,
        )


class RouterMetrics:
    """What the router holds. Workers, placements, cached prompts and adapters are counted apart."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        self.requests_total = counter(
            "router_requests_total",
            "Requests that left the router, by outcome: completed, cancelled (also withdrawn from the "
            "queue), rejected (before the queue), evicted (after the queue, before a placement), failed, "
            "replaced (it asked for another place), given_back (its apiserver's session ended first)",
            ("outcome",),
        )
        self.refusals_total = counter(
            "router_refusals_total", "Requests rejected or evicted, by the class of the error", ("error",)
        )
        self.queued_requests = gauge("router_queued_requests", "Requests that wait for a placement")
        self.running_requests = gauge("router_running_requests", "Requests that are placed and not done")
        self.apiservers = gauge("router_apiservers", "Open apiserver sessions")
        self.leads = gauge("router_leads", "1 while this router decides; of several routers one does")
        self.queue_time_seconds = Histogram(
            "request_queue_time_seconds",
            "From admission to placement, of placed requests, by model",
            ("model",),
            buckets=WAIT_BUCKETS_SECONDS,
            registry=registry,
        )
        self.members = MembershipMetrics(registry)
        self.placements = PlacementMetrics(registry)
        self.prefixes = PrefixMetrics(registry)
        self.adapters = RegistrationMetrics(registry)
        self.scheduler = StateCollector(_SCHEDULER_FAMILIES, SchedulerStats)
        registry.register(self.scheduler)
