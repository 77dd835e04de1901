"""Tenants and budgets, read from the scheduler's state when scraped. Past 256 `tenant`s: `(others)`."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmserve.core.stats import SchedulerStats, TenantStats

_OfTenant = Callable[[TenantStats], float]
_OfAll = Callable[[SchedulerStats], float]

_CLUSTER_GAUGES: tuple[tuple[str, str, _OfAll], ...] = (
    (
        "router_queue_limit_requests",
        "Requests that may wait; one more is refused",
        lambda stats: stats.queue_limit_requests,
    ),
    (
        "router_tokens_in_flight",
        "Prompt tokens to compute and expected answer tokens of all that runs",
        lambda stats: stats.tokens_in_flight,
    ),
    (
        "router_kv_bytes_in_flight",
        "KV of all that runs: prompt and expected answer",
        lambda stats: stats.kv_bytes_in_flight,
    ),
)
_TENANT_GAUGES: tuple[tuple[str, str, _OfTenant], ...] = (
    ("router_tenant_weight", "Its share, against 1 of a tenant that is not named", lambda one: one.weight),
    ("router_tenant_queued_requests", "Its requests that wait for a placement", lambda one: one.waiting),
    ("router_tenant_running_requests", "Its requests that are placed and not done", lambda one: one.running),
)
_TENANT_COUNTERS: tuple[tuple[str, str, _OfTenant], ...] = (
    ("router_tenant_dispatched_total", "Its requests that got a place", lambda one: one.dispatched),
    ("router_tenant_refusals_total", "Its requests rejected or evicted", lambda one: one.refused),
    (
        "router_tenant_queue_seconds_total",
        "How long those waited that got a place",
        lambda o: o.queue_seconds,
    ),
    (
        "router_tenant_served_tokens_total",
        "Computed prompt tokens and answer tokens of its requests that ended",
        lambda one: one.served_tokens,
    ),
)


class SchedulerCollector(Collector):
    def __init__(self) -> None:
        self._stats: Callable[[], SchedulerStats] = SchedulerStats

    def watch(self, stats: Callable[[], SchedulerStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text, of_all in _CLUSTER_GAUGES:
            yield GaugeMetricFamily(name, text, of_all(stats))
        yield _used_ratios(stats)
        yield _refusals(stats)
        for name, text, of_tenant in _TENANT_GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=("tenant",))
            for one in stats.tenants:
                gauge.add_metric((one.tenant,), of_tenant(one))
            yield gauge
        for name, text, of_tenant in _TENANT_COUNTERS:
            counter = CounterMetricFamily(name, text, labels=("tenant",))
            for one in stats.tenants:
                counter.add_metric((one.tenant,), of_tenant(one))
            yield counter


def _used_ratios(stats: SchedulerStats) -> Metric:
    family = GaugeMetricFamily(
        "router_budget_used_ratio",
        "How much of a budget of the cluster is taken; at 1 nothing is dispatched that needs it",
        labels=("budget",),
    )
    for budget in stats.budgets:
        if budget.used_ratio is not None:
            family.add_metric((budget.name,), budget.used_ratio)
    return family


def _refusals(stats: SchedulerStats) -> Metric:
    family = CounterMetricFamily(
        "router_budget_refusals_total",
        "Requests rejected or evicted while the budget had no room; each counts for all that had none",
        labels=("budget",),
    )
    for budget in stats.budgets:
        family.add_metric((budget.name,), budget.refused)
    return family
