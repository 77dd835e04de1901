"""Who gets what, and what keeps others from it."""

from llmserve.metrics.dashboards.panels import (
    Dashboard,
    DashboardSection,
    Query,
    Unit,
    each,
    mean,
    panel,
    rate,
    series,
    total,
)

_SERVED = rate("router_tenant_served_tokens_total")
_PER_WEIGHT = f"{total(_SERVED, 'tenant')} / max by (tenant) ({series('router_tenant_weight')})"

_TENANTS = DashboardSection(
    "Tenants",
    (
        panel(
            "Tokens served",
            "Computed prompt and answer, of requests that ended.",
            Unit.PER_SECOND,
            each(_SERVED, "tenant"),
            stacked=True,
        ),
        panel(
            "Tokens served for each weight",
            "Equal among tenants that always have something waiting: then each has its fair share.",
            Unit.PER_SECOND,
            Query(_PER_WEIGHT, "{{tenant}}"),
        ),
        panel(
            "Fairness",
            "Jain's index of the tokens served for each weight: 1 when all are equal, 1/n when one has all. "
            "It says something only while all of them want more.",
            Unit.RATIO,
            Query(
                f"sum({_PER_WEIGHT}) ^ 2 / (count({_PER_WEIGHT}) * sum(({_PER_WEIGHT}) ^ 2))",
                "Jain's index",
            ),
        ),
        panel(
            "Queued",
            "Requests that wait for a place.",
            Unit.NONE,
            each(series("router_tenant_queued_requests"), "tenant"),
            stacked=True,
        ),
        panel(
            "Running",
            "Requests that have a place.",
            Unit.NONE,
            each(series("router_tenant_running_requests"), "tenant"),
            stacked=True,
        ),
        panel(
            "Queue time",
            "Mean, of requests that got a place.",
            Unit.SECONDS,
            Query(
                mean("router_tenant_queue_seconds_total", "router_tenant_dispatched_total", "tenant"),
                "{{tenant}}",
            ),
        ),
        panel(
            "Dispatched",
            "Requests that got a place.",
            Unit.PER_SECOND,
            each(rate("router_tenant_dispatched_total"), "tenant"),
        ),
        panel(
            "Refused",
            "Requests rejected or evicted.",
            Unit.PER_SECOND,
            each(rate("router_tenant_refusals_total"), "tenant"),
        ),
        panel(
            "Weight",
            "scheduling.weights.",
            Unit.NONE,
            Query(f"max by (tenant) ({series('router_tenant_weight')})", "{{tenant}}"),
        ),
    ),
)
_BUDGETS = DashboardSection(
    "Budgets",
    (
        panel(
            "Used",
            "Of each budget that has a limit. At 100% the next request waits.",
            Unit.RATIO,
            Query(f"max by (budget) ({series('router_budget_used_ratio')})", "{{budget}}"),
        ),
        panel(
            "Refusals by budget",
            "Requests that were refused while the budget had no room for them.",
            Unit.PER_SECOND,
            each(rate("router_budget_refusals_total"), "budget"),
        ),
        panel(
            "Tokens in flight",
            "Prompt tokens to compute and expected answer tokens of all that runs.",
            Unit.NONE,
            Query(total(series("router_tokens_in_flight")), "tokens"),
        ),
        panel(
            "KV in flight",
            "Of all that runs: prompt and expected answer. budgets.hbm_gb limits it.",
            Unit.BYTES,
            Query(total(series("router_kv_bytes_in_flight")), "KV"),
        ),
    ),
)

TENANTS = Dashboard(
    "llmserve-tenants",
    "LLMServe: tenants and fairness",
    "Who gets what, and what keeps others from it.",
    (_TENANTS, _BUDGETS),
)
