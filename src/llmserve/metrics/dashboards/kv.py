"""Where KV is, how it moves, and what it saves."""

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

_TRANSFER = DashboardSection(
    "Hand-over between engines",
    (
        panel(
            "KV moved",
            "By transport.",
            Unit.BITS_PER_SECOND,
            Query(f"8 * {total(rate('kv_pair_bytes_total'), 'transport')}", "{{transport}}"),
            stacked=True,
        ),
        panel(
            "Speed while moving",
            "Bytes of hand-overs for the time that they took.",
            Unit.BYTES_PER_SECOND,
            Query(mean("kv_pair_bytes_total", "kv_pair_seconds_total", "transport"), "{{transport}}"),
        ),
        panel(
            "Time of a transfer",
            "Mean, by transport.",
            Unit.SECONDS,
            Query(mean("kv_pair_seconds_total", "kv_pair_transfers_total", "transport"), "{{transport}}"),
        ),
        panel(
            "Transport chosen",
            "Pairs of workers whose next request goes this way.",
            Unit.NONE,
            each(series("kv_pair_chosen"), "transport"),
            stacked=True,
        ),
        panel(
            "Open breakers",
            "Pairs that a transport failed: the next one in engine_order is used, until a probe works again.",
            Unit.NONE,
            each(f"1 - {series('kv_pair_usable')}", "transport"),
        ),
        panel(
            "Failures",
            "Probes and hand-overs that failed, by transport, and fetches of KV that failed altogether.",
            Unit.PER_SECOND,
            Query(total(rate("kv_pair_failures_total"), "transport"), "{{transport}}"),
            Query(total(rate("kv_transfer_failures_total")), "fetches"),
        ),
        panel(
            "Probed speed",
            "Mean over pairs of the last probe that worked.",
            Unit.BYTES_PER_SECOND,
            Query(f"avg by (transport) ({series('kv_pair_probe_bytes_per_second')} > 0)", "{{transport}}"),
        ),
        panel(
            "KV fetched by engines",
            "All transports; budgets.max_kv_io_gbps limits it.",
            Unit.BITS_PER_SECOND,
            Query(f"8 * {total(rate('kv_transfer_bytes_total'), 'process')}", "{{process}}"),
            stacked=True,
        ),
        panel(
            "Where prompts' KV came from",
            "computed by decode engines: it was handed over and did not arrive.",
            Unit.PER_SECOND,
            Query(
                total(rate("worker_prompt_tokens_total"), "component, source"),
                "{{component}}: {{source}}",
            ),
            stacked=True,
        ),
    ),
)
_LEASES = DashboardSection(
    "Leases and the directory",
    (
        panel(
            "Leases",
            "Every kvmanager counts all: the maximum of them.",
            Unit.NONE,
            Query(f"max({series('kv_open_leases')})", "open"),
            Query(f"max({series('kv_store_open_leases')})", "of prompts that load"),
            Query(f"max({series('kv_store_reserved_blocks')})", "blocks being stored"),
        ),
        panel(
            "Orphans",
            "Blocks held for nobody. Returns to 0; the alert LLMServeOrphanedKv comes if it does not.",
            Unit.NONE,
            Query(f"max by (component) ({series('kv_orphan_blocks')})", "{{component}}"),
        ),
        panel(
            "Leases that ended",
            "expired and written_off: an end that nobody announced.",
            Unit.PER_SECOND,
            Query(f"max by (how) ({rate('kv_leases_ended_total')})", "{{how}}"),
        ),
        panel(
            "Blocks known",
            "Distinct blocks that some engine holds.",
            Unit.NONE,
            Query(f"max({series('kv_directory_blocks')})", "blocks"),
        ),
        panel(
            "Reports",
            "Of workers, of what they hold; resyncs: one was missing and all was told again.",
            Unit.PER_SECOND,
            Query(total(rate("kv_reports_total")), "reports"),
            Query(total(rate("kv_resyncs_total")), "resyncs"),
        ),
    ),
)
_TIERS = DashboardSection(
    "Tiers of the KV store (storageClasses)",
    (
        panel(
            "Fill",
            "Of what each tier may hold.",
            Unit.RATIO,
            Query(
                f"{total(series('kv_store_bytes'), 'tier')} / "
                f"{total(series('kv_store_capacity_bytes'), 'tier')}",
                "{{tier}}",
            ),
        ),
        panel(
            "Hits",
            "Tokens that prompts did not have to compute, by the tier that had them.",
            Unit.PER_SECOND,
            each(rate("kv_store_hit_tokens_total"), "tier"),
            stacked=True,
        ),
        panel(
            "Prefill saved",
            "Seconds of computing that the hits saved, each second.",
            Unit.NONE,
            Query(total(rate("kv_store_saved_prefill_seconds_total")), "saved"),
        ),
        panel(
            "Loaded",
            "Out of each tier.",
            Unit.BYTES_PER_SECOND,
            each(rate("kv_store_load_bytes_total"), "tier"),
        ),
        panel(
            "Stored",
            "Into each tier.",
            Unit.BYTES_PER_SECOND,
            each(rate("kv_store_store_bytes_total"), "tier"),
        ),
        panel(
            "Waiting to be written",
            "A tier that is not fast enough for what goes down to it.",
            Unit.BYTES,
            each(series("kv_store_queued_bytes"), "tier"),
        ),
        panel(
            "Evictions",
            "By tier and reason. corrupt: the medium is failing.",
            Unit.PER_SECOND,
            Query(total(rate("kv_store_evictions_total"), "tier, reason"), "{{tier}}: {{reason}}"),
        ),
        panel(
            "Blocks held",
            "Pinned ones are not evicted.",
            Unit.NONE,
            Query(total(series("kv_store_blocks"), "tier"), "{{tier}}"),
            Query(total(series("kv_store_pinned_blocks"), "tier"), "{{tier}}: pinned"),
        ),
    ),
)

KV = Dashboard(
    "llmserve-kv",
    "LLMServe: KV and transfer",
    "Where KV is, how it moves, and what it saves.",
    (_TRANSFER, _LEASES, _TIERS),
)
