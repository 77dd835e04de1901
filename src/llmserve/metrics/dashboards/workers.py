"""The engines: how many, how busy, how well."""

from llmserve.metrics.dashboards.panels import (
    Dashboard,
    DashboardSection,
    Query,
    Unit,
    each,
    panel,
    quantiles,
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
_SPECULATION = DashboardSection(
    "Speculation",
    (
        panel(
            "Proposed tokens that were right",
            "By each engine that speculates.",
            Unit.RATIO,
            Query(
                f"{total(rate('worker_speculation_accepted_tokens_total'), 'process')} / "
                f"{total(rate('worker_speculation_proposed_tokens_total'), 'process')}",
                "{{process}}",
            ),
        ),
        panel(
            "Tokens of a request in a step with proposals",
            "One comes anyway.",
            Unit.NONE,
            Query(
                f"1 + {total(rate('worker_speculation_accepted_tokens_total'), 'process')} / "
                f"{total(rate('worker_speculation_verifications_total'), 'process')}",
                "{{process}}",
            ),
        ),
        panel(
            "Gain",
            "Tokens per second with proposals, as a multiple of those without, by batch size. Below 1 they "
            "are switched off.",
            Unit.NONE,
            Query(f"{series('worker_speculation_gain')} > 0", "{{process}}: {{batch}}"),
        ),
        panel(
            "Proposals are on",
            "1 for each batch size whose steps propose tokens.",
            Unit.NONE,
            Query(series("worker_speculation_on"), "{{process}}: {{batch}}"),
        ),
    ),
)
_ADAPTERS = DashboardSection(
    "LoRA adapters",
    (
        panel(
            "Adapters",
            "By state. failed: `llmserve adapters ls` says why.",
            Unit.NONE,
            each(series("router_adapters"), "state"),
            stacked=True,
        ),
        panel(
            "Where requests found their adapter",
            "device: in a slot, so nothing had to be loaded. Prefill and decode count apart.",
            Unit.PER_SECOND,
            each(rate("worker_adapter_legs_total"), "tier"),
            stacked=True,
        ),
        panel(
            "Wait for an adapter",
            "Of requests with an adapter, before their engine got them.",
            Unit.SECONDS,
            *quantiles("worker_adapter_wait_seconds"),
        ),
        panel(
            "Time of loading",
            "Of an adapter into a slot.",
            Unit.SECONDS,
            *quantiles("worker_adapter_load_seconds"),
        ),
        panel(
            "Slots in use",
            "Of the device slots of each engine. Idle adapters keep theirs until another one needs it.",
            Unit.RATIO,
            Query(
                f"{total(series('worker_adapter_used_slots'), 'process')} / "
                f"({total(series('worker_adapter_slots'), 'process')} > 0)",
                "{{process}}",
            ),
        ),
        panel(
            "Adapters that lost their slot",
            "To another one. LLMServeAdapterThrash: when most requests have to wait for that.",
            Unit.PER_SECOND,
            each(rate("worker_adapter_evictions_total"), "process"),
        ),
        panel(
            "Loads and failures",
            "ready, failed, given_up: how loads of names ended. slot: loads into a slot that failed. fetch: "
            "fetches that failed and are tried again.",
            Unit.PER_SECOND,
            each(rate("router_adapter_loads_total"), "outcome"),
            Query(total(rate("worker_adapter_load_failures_total")), "slot"),
            Query(total(rate("router_adapter_fetch_failures_total")), "fetch"),
        ),
        panel(
            "Adapters held",
            "By the nearest place on the worker's host.",
            Unit.BYTES,
            Query(total(series("worker_adapter_bytes"), "process, tier"), "{{process}}: {{tier}}"),
        ),
    ),
)

WORKERS = Dashboard(
    "llmserve-workers",
    "LLMServe: workers",
    "The engines: how many, how busy, how well.",
    (_MEMBERS, _ENGINES, _SPECULATION, _ADAPTERS),
)
