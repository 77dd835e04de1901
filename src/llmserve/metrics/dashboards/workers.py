"""The engines: how many, how busy, how well."""

from llmserve.metrics.dashboards.panels import (
    Dashboard,
    DashboardSection,
    Query,
    Unit,
    each,
    panel,
    rate,
    series,
    total,
)

_MEMBERS = DashboardSection(
    "Which there are",
    (
        panel(
            "Workers",
            "As the router knows them. suspect: a request failed on it; lost: it is silent.",
            Unit.NONE,
            Query(total(series("router_workers"), "role, state"), "{{role}}: {{state}}"),
            stacked=True,
        ),
        panel(
            "Interruptions",
            "How often a worker stopped being available, in 15 minutes. LLMServeWorkerFlapping: from 3 on.",
            Unit.NONE,
            Query(
                f"sum by (worker) (increase({series('router_worker_interruptions_total')}[15m]))",
                "{{worker}}",
            ),
        ),
        panel(
            "Processes",
            "Of `llmserve up`: how many of each role are ready and answer.",
            Unit.NONE,
            each(series("cluster_process_up"), "component"),
            stacked=True,
        ),
        panel(
            "Restarts",
            "Of processes of `llmserve up`, in 15 minutes; and of these, because they did not answer.",
            Unit.NONE,
            Query(
                f"sum by (process) (increase({series('cluster_process_restarts_total')}[15m]))",
                "{{process}}",
            ),
            Query(f"sum(increase({series('cluster_process_hangs_total')}[15m]))", "hung"),
        ),
        panel(
            "Placements",
            "Where requests go.",
            Unit.PER_SECOND,
            Query(total(rate("router_placements_total"), "worker, role"), "{{worker}}"),
            stacked=True,
        ),
        panel(
            "Apiserver streams",
            "Open sessions of each worker.",
            Unit.NONE,
            each(series("worker_sessions"), "process"),
        ),
    ),
)
_ENGINES = DashboardSection(
    "What they do",
    (
        panel(
            "Running in the batch",
            "Requests in each engine's batch.",
            Unit.NONE,
            each(series("worker_requests_running"), "process"),
        ),
        panel(
            "Waiting in the engine",
            "With those that load their KV.",
            Unit.NONE,
            each(series("worker_requests_waiting"), "process"),
        ),
        panel(
            "KV blocks used",
            "Of the engine's blocks. At 100% it preempts requests.",
            Unit.RATIO,
            Query(
                f"{total(series('kv_used_blocks'), 'process')} / "
                f"{total(series('kv_total_blocks'), 'process')}",
                "{{process}}",
            ),
        ),
        panel(
            "Prompt tokens computed",
            "By each engine.",
            Unit.PER_SECOND,
            each(rate("worker_prompt_tokens_total", 'source="computed"'), "process"),
        ),
        panel(
            "Tokens generated",
            "By each engine.",
            Unit.PER_SECOND,
            each(rate("worker_output_tokens_total"), "process"),
        ),
        panel(
            "Requests that ended",
            "By how. abort: given up by the apiserver, or with its stream.",
            Unit.PER_SECOND,
            each(rate("worker_requests_total"), "finish_reason"),
            stacked=True,
        ),
        panel(
            "Tokens in a message",
            "More under load: messages to apiservers carry what came about meanwhile.",
            Unit.NONE,
            Query(
                f"{total(rate('worker_output_tokens_total'), 'process')} / "
                f"{total(rate('worker_messages_total'), 'process')}",
                "{{process}}",
            ),
        ),
        panel(
            "Blocks held for others",
            "Under open leases, until decode has fetched them.",
            Unit.NONE,
            each(series("kv_leased_blocks", 'component!="kvmanager"'), "process"),
        ),
        panel(
            "Orphans",
            "Blocks pinned although their lease has ended. Returns to 0.",
            Unit.NONE,
            each(series("kv_orphan_blocks", 'component!="kvmanager"'), "process"),
        ),
    ),
)

WORKERS = Dashboard(
    "llmserve-workers",
    "LLMServe: workers",
    "The engines: how many, how busy, how well.",
    (_MEMBERS, _ENGINES),
)
