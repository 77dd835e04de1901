"""What `GetClusterStatus` says of tenants and budgets."""

from llmserve.core.stats import BudgetStats, SchedulerStats, TenantStats
from llmserve.router.codec import encode_budgets, encode_tenants


def test_every_figure_of_a_tenant() -> None:
    stats = SchedulerStats(tenants=(TenantStats("gold", 4.0, 1, 2, 3, 4, 5.0, 6),))
    (told,) = encode_tenants(stats)
    assert (told.tenant, told.weight, told.queued_requests, told.running_requests) == ("gold", 4.0, 1, 2)
    assert (told.dispatched_requests, told.refused_requests) == (3, 4)
    assert (told.queue_seconds, told.served_tokens) == (5.0, 6)


def test_a_budget_without_a_limit_is_told_from_an_empty_one() -> None:
    full, unlimited = encode_budgets(
        SchedulerStats(budgets=(BudgetStats("a", 0.0, 1), BudgetStats("b", None, 2)))
    )
    assert (full.name, full.used_ratio, full.HasField("used_ratio"), full.refused_requests) == (
        "a",
        0.0,
        True,
        1,
    )
    assert (unlimited.name, unlimited.HasField("used_ratio"), unlimited.refused_requests) == ("b", False, 2)
