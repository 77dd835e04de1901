"""The scheduler's state, when it is scraped."""

from prometheus_client import CollectorRegistry

from llmserve.core.stats import BudgetStats, SchedulerStats, TenantStats
from llmserve.metrics.router import RouterMetrics


def test_the_scheduler_is_read_when_scraped() -> None:
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry)
    assert registry.get_sample_value("router_queue_limit_requests") == 0
    tenant = TenantStats("gold", 4.0, waiting=3, running=2, dispatched=9, refused=1, queue_seconds=1.5)
    budgets = (BudgetStats("tokens in flight", 0.5, 1), BudgetStats("KV I/O", None, 0))
    metrics.scheduler.watch(lambda: SchedulerStats((tenant,), budgets, queue_limit_requests=7))
    value = registry.get_sample_value
    assert value("router_queue_limit_requests") == 7
    assert value("router_tenant_queued_requests", {"tenant": "gold"}) == 3
    assert value("router_tenant_dispatched_total", {"tenant": "gold"}) == 9
    assert value("router_budget_used_ratio", {"budget": "tokens in flight"}) == 0.5
    assert value("router_budget_used_ratio", {"budget": "KV I/O"}) is None
    assert value("router_budget_refusals_total", {"budget": "KV I/O"}) == 0
