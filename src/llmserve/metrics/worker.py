"""What a worker counts."""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llmserve.core.request import EngineLoad, EngineOutput, FinishReason, PairStatus, PrefillStats
from llmserve.core.stats import BatchGain, SpeculationReport
from llmserve.metrics.registry import WAIT_BUCKETS_SECONDS, StateCollector, StateRows

_PAIRS: StateRows[Sequence[PairStatus], PairStatus] = StateRows(
    ("peer", "transport"), lambda pairs: pairs, lambda pair: (pair.peer, pair.transport)
)

_PAIR_FAMILIES = (
    _PAIRS.family("kv_pair_chosen", "1: the next transfer goes this way", lambda row: row.chosen),
    _PAIRS.family("kv_pair_usable", "1: the breaker is closed", lambda row: row.breaker == "closed"),
    _PAIRS.family(
        "kv_pair_probe_bytes_per_second",
        "Speed of the last probe that worked; 0: none did",
        lambda row: row.bytes_per_second,
    ),
    _PAIRS.family(
        "kv_pair_probe_small_seconds",
        "Time of a read of 64 KiB in the last probe that worked",
        lambda row: row.small_seconds,
    ),
    _PAIRS.family(
        "kv_pair_transfers_total",
        "Transfers that went this way, also to a KV store",
        lambda row: row.transfers,
    ),
    _PAIRS.family("kv_pair_bytes_total", "KV bytes that went this way", lambda row: row.bytes),
    _PAIRS.family("kv_pair_seconds_total", "Time that these took", lambda row: row.seconds),
    _PAIRS.family(
        "kv_pair_failures_total", "Probes and transfers that failed this way", lambda row: row.failures
    ),
)

_BATCHES: StateRows[Sequence[BatchGain], BatchGain] = StateRows(
    ("batch",), lambda gains: gains, lambda gain: (str(gain.batch),)
)

_BATCH_FAMILIES = (
    _BATCHES.family(
        "worker_speculation_gain",
        "Tokens per second with proposals, as a multiple of those without, in steps of so many requests "
        "(the smallest number of a class); 0: not measured yet",
        lambda row: row.gain,
    ),
    _BATCHES.family(
        "worker_speculation_on",
        "1: steps of so many requests propose tokens, apart from those of a trial",
        lambda row: row.proposes,
    ),
    _BATCHES.family(
        "worker_speculation_steps_total",
        "Steps of so many requests, with those that compute prompts",
        lambda row: row.steps,
    ),
)


class SpeculationMetrics:
    """Stays at 0 on engines that do not speculate."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self.verifications_total = counter(
            "worker_speculation_verifications_total",
            "Times that one request had its proposed tokens verified",
        )
        self.proposed_tokens_total = counter(
            "worker_speculation_proposed_tokens_total", "Tokens that were proposed and verified"
        )
        self.accepted_tokens_total = counter(
            "worker_speculation_accepted_tokens_total", "Proposed tokens that were right"
        )
        self._last = SpeculationReport()
        self.batches = StateCollector(_BATCH_FAMILIES, lambda: self._last.gains)
        registry.register(self.batches)

    def record(self, report: SpeculationReport) -> None:
        """report: totals since the engine's start. Totals that fall add nothing."""
        last, self._last = self._last, report
        self.verifications_total.inc(max(0, report.verifications - last.verifications))
        self.proposed_tokens_total.inc(max(0, report.proposed_tokens - last.proposed_tokens))
        self.accepted_tokens_total.inc(max(0, report.accepted_tokens - last.accepted_tokens))


class AdapterMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.legs_total = counter(
            "worker_adapter_legs_total",
            "Requests with a LoRA adapter that the engine got, by where the adapter was when they came: "
            "device (in a slot), dram, disk, source (fetched again)",
            ("tier",),
        )
        self.wait_seconds = Histogram(
            "worker_adapter_wait_seconds",
            "Time for which these waited for their adapter",
            buckets=WAIT_BUCKETS_SECONDS,
            registry=registry,
        )
        self.load_seconds = Histogram(
            "worker_adapter_load_seconds",
            "Time of loading an adapter into a device slot, from memory or disk",
            buckets=WAIT_BUCKETS_SECONDS,
            registry=registry,
        )
        self.load_failures_total = counter(
            "worker_adapter_load_failures_total", "Adapters that could not be loaded into a device slot"
        )
        self.evictions_total = counter(
            "worker_adapter_evictions_total", "Adapters that left their device slot for another one"
        )
        self.slots = gauge("worker_adapter_slots", "Device slots for adapters")
        self.used_slots = gauge(
            "worker_adapter_used_slots", "Device slots that have an adapter, or load or unload one"
        )
        self.bytes = gauge(
            "worker_adapter_bytes",
            "Size of the adapters that the worker is to hold, by the nearest place on its host: dram, disk",
            ("tier",),
        )


class EngineMetrics:
    """What an engine has to do, which memory it holds for that, and how its transfers go."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.requests_running = gauge("worker_requests_running", "Requests in the engine's batch")
        self.requests_waiting = gauge(
            "worker_requests_waiting",
            "Requests in the engine that do not run yet, with those that load their KV",
        )
        self.used_blocks = gauge("kv_used_blocks", "Device blocks that are referenced")
        self.total_blocks = gauge("kv_total_blocks", "Device blocks of the engine")
        self.leased_blocks = gauge("kv_leased_blocks", "Blocks held for other workers under open leases")
        self.orphan_blocks = gauge(
            "kv_orphan_blocks", "Blocks still pinned although their lease has ended. Returns to 0"
        )
        self.transfer_bytes_total = counter("kv_transfer_bytes_total", "KV bytes fetched from other workers")
        self.transfer_failures_total = counter(
            "kv_transfer_failures_total", "Attempts to fetch KV that failed"
        )
        self.silent_seconds = gauge(
            "worker_engine_silent_seconds",
            "For how long the engine has not answered; 0: it answers. A long step, or a hang",
        )
        self.stalled = gauge(
            "worker_engine_stalled", "1: the engine has not answered for so long that it gets no requests"
        )
        self._last = EngineLoad()
        self.pairs = StateCollector(_PAIR_FAMILIES, lambda: self._last.pairs)
        registry.register(self.pairs)

    def record(self, load: EngineLoad) -> None:
        """Sets the gauges, and adds to the counters what the engine's totals grew since the last call."""
        self.requests_running.set(load.running_requests)
        self.requests_waiting.set(load.waiting_requests)
        self.used_blocks.set(load.used_blocks)
        self.leased_blocks.set(load.leased_blocks)
        self.orphan_blocks.set(load.orphan_blocks)
        self.stalled.set(load.stalled)
        self.transfer_bytes_total.inc(max(0, load.transferred_bytes - self._last.transferred_bytes))
        self.transfer_failures_total.inc(max(0, load.transfer_failures - self._last.transfer_failures))
        self._last = _copy(load)


class WorkerMetrics:
    """What a worker does. Its engine, adapters and speculation are counted apart."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.prompt_tokens_total = counter(
            "worker_prompt_tokens_total",
            "Prompt tokens, by where their KV came from: computed, local (prefix cache), external "
            "(another worker)",
            ("source",),
        )
        self.output_tokens_total = counter("worker_output_tokens_total", "Tokens generated")
        self.requests_total = counter(
            "worker_requests_total",
            "Requests that ended, by how: stop, length, error, repetition; abort: given up by the "
            "apiserver or with its stream",
            ("finish_reason",),
        )
        self.sessions = gauge("worker_sessions", "Open apiserver streams")
        self.messages_total = counter(
            "worker_messages_total", "Messages sent to apiservers; each may carry many deltas"
        )
        self.engine = EngineMetrics(registry)
        self.adapters = AdapterMetrics(registry)
        self.speculation = SpeculationMetrics(registry)

    def record_load(self, load: EngineLoad) -> None:
        self.engine.record(load)
        if load.speculation is not None:
            self.speculation.record(load.speculation)

    def record_outputs(self, outputs: Sequence[EngineOutput]) -> None:
        """Counts the outputs of one step."""
        tokens = 0
        for output in outputs:
            tokens += len(output.token_ids)
            if output.prefill_stats is not None:
                self._record_prefill(output.prefill_stats)
            if output.finish_reason is not None:
                self.record_end(output.finish_reason)
        self.output_tokens_total.inc(tokens)

    def _record_prefill(self, stats: PrefillStats) -> None:
        local, external = stats.local_cached_tokens, stats.external_cached_tokens
        self.prompt_tokens_total.labels("local").inc(local)
        self.prompt_tokens_total.labels("external").inc(external)
        self.prompt_tokens_total.labels("computed").inc(stats.prompt_tokens - local - external)

    def record_end(self, reason: FinishReason, requests: int = 1) -> None:
        self.requests_total.labels(reason.value).inc(requests)


def _copy(load: EngineLoad) -> EngineLoad:
    """The engine may go on changing the object that it returned."""
    return EngineLoad(**{f.name: getattr(load, f.name) for f in fields(load)})
