"""Is the cluster well, and what do its users feel?"""

from llmserve.metrics.dashboards.panels import (
    Dashboard,
    DashboardSection,
    Query,
    Unit,
    each,
    panel,
    quantile,
    quantiles,
    rate,
    series,
    total,
)

_USERS = DashboardSection(
    "What users feel",
    (
        panel(
            "Time to first token",
            "From the request's start to its first token, queueing included.",
            Unit.SECONDS,
            *quantiles("time_to_first_token_seconds"),
        ),
        panel(
            "Time between tokens",
            "Mean of each request with two or more tokens.",
            Unit.SECONDS,
            *quantiles("inter_token_latency_seconds"),
        ),
        panel(
            "Time of a request",
            "From its start to its end.",
            Unit.SECONDS,
            *quantiles("apiserver_request_seconds"),
        ),
    ),
)
_LOAD = DashboardSection(
    "Load",
    (
        panel(
            "Requests that ended",
            "By outcome. rejected and evicted: the queue was full or too slow; failed: look at the log.",
            Unit.PER_SECOND,
            each(rate("apiserver_requests_total"), "outcome"),
            stacked=True,
        ),
        panel(
            "Requests in the cluster",
            "Running ones have a place; queued ones wait for one, up to the limit.",
            Unit.NONE,
            Query(total(series("router_running_requests")), "running"),
            Query(total(series("router_queued_requests")), "queued"),
            Query(total(series("router_queue_limit_requests")), "queue limit"),
        ),
        panel(
            "Tokens",
            "Prompts of requests that began to be answered, what of them was found in a cache, and answers.",
            Unit.PER_SECOND,
            Query(total(rate("apiserver_prompt_tokens_total")), "prompt"),
            Query(total(rate("apiserver_cached_prompt_tokens_total")), "of it cached"),
            Query(total(rate("apiserver_output_tokens_total")), "answer"),
        ),
        panel(
            "Queue time",
            "From admission to placement, of placed requests.",
            Unit.SECONDS,
            *quantiles("request_queue_time_seconds"),
        ),
        panel(
            "Refusals",
            "By the class of the error that clients got.",
            Unit.PER_SECOND,
            each(rate("router_refusals_total"), "error"),
            stacked=True,
        ),
        panel(
            "Failed legs",
            "Parts of requests that a worker failed; users see nothing of most, they are placed again.",
            Unit.PER_SECOND,
            each(rate("apiserver_worker_failures_total"), "error"),
        ),
    ),
)
_MODELS = DashboardSection(
    "Models",
    (
        panel(
            "Time to first token of each model",
            "99th percentile. That of one model rises alone: its own engines or its own queue are full.",
            Unit.SECONDS,
            Query(quantile(0.99, "time_to_first_token_seconds", "model"), "{{model}}"),
        ),
        panel(
            "Requests of each model",
            "From admission to their end, those included that wait for a place.",
            Unit.NONE,
            each(series("apiserver_running_requests"), "model"),
            stacked=True,
        ),
        panel(
            "Tokens of each model",
            "Of answers.",
            Unit.PER_SECOND,
            each(rate("apiserver_output_tokens_total"), "model"),
            stacked=True,
        ),
    ),
)
_PARTS = DashboardSection(
    "Disaggregation and control",
    (
        panel(
            "First tokens by origin",
            "prefill: sent before the hand-over; decode: drawn after it; aggregated: no hand-over.",
            Unit.PER_SECOND,
            each(rate("apiserver_first_tokens_total"), "origin"),
            stacked=True,
        ),
        panel(
            "Hand-overs",
            "Requests with prefill and decode apart. None while prefill workers are there: see the alert "
            "LLMServeNotDisaggregated.",
            Unit.PER_SECOND,
            each(rate("apiserver_handovers_total"), "mode"),
        ),
        panel(
            "Time to decide",
            "What the router takes for one event.",
            Unit.SECONDS,
            *quantiles("router_decision_seconds"),
        ),
        panel(
            "Links",
            "Sessions of apiservers with the router, and of apiservers with workers.",
            Unit.NONE,
            Query(total(series("router_apiservers")), "apiservers"),
            Query(total(series("apiserver_router_connected")), "connected to the router"),
            Query(total(series("apiserver_worker_links")), "worker sessions"),
        ),
        panel(
            "Broken sessions",
            "Of apiservers with the router: it was restarted, or cannot keep up.",
            Unit.PER_SECOND,
            Query(total(rate("apiserver_router_reconnects_total")), "reconnects"),
        ),
    ),
)

OVERVIEW = Dashboard(
    "llmserve-overview",
    "LLMServe: overview",
    "Is the cluster well, and what do its users feel?",
    (_USERS, _LOAD, _MODELS, _PARTS),
)
