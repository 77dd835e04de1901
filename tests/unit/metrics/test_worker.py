from prometheus_client import CollectorRegistry

from llmserve.core.ids import RequestId
from llmserve.core.request import EngineLoad, EngineOutput, FinishReason, PrefillStats
from llmserve.core.stats import BatchGain, SpeculationReport
from llmserve.metrics.worker import WorkerMetrics


def test_totals_of_the_engine_become_counters() -> None:
    registry = CollectorRegistry()
    metrics, load = WorkerMetrics(registry), EngineLoad(transferred_bytes=100, orphan_blocks=2)
    metrics.record_load(load)
    load.transferred_bytes, load.orphan_blocks = 130, 0  # the engine writes on into the same object
    metrics.record_load(load)
    assert registry.get_sample_value("kv_transfer_bytes_total") == 130
    assert registry.get_sample_value("kv_orphan_blocks") == 0


def test_prompt_tokens_are_counted_by_source() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    stats = PrefillStats(100, local_cached_tokens=16, external_cached_tokens=80)
    metrics.record_outputs([EngineOutput(RequestId("a"), (1, 2), FinishReason.STOP, prefill_stats=stats)])
    values = {
        source: registry.get_sample_value("worker_prompt_tokens_total", {"source": source})
        for source in ("computed", "local", "external")
    }
    assert values == {"computed": 4, "local": 16, "external": 80}
    assert registry.get_sample_value("worker_output_tokens_total") == 2
    assert registry.get_sample_value("worker_requests_total", {"finish_reason": "stop"}) == 1


def test_totals_of_speculation_that_fall_add_nothing() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    for verifications in (10, 4, 6):
        metrics.record_load(EngineLoad(speculation=SpeculationReport(verifications, 30, 12)))
    assert registry.get_sample_value("worker_speculation_verifications_total") == 12


def test_what_speculation_brings_is_counted_and_shown_by_batch_size() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    gains = (BatchGain(1, True, 1.4, 70), BatchGain(8, False, 0.9, 30))
    for report in (SpeculationReport(10, 30, 12, gains[:1]), SpeculationReport(15, 45, 20, gains)):
        metrics.record_load(EngineLoad(speculation=report))
    metrics.record_load(EngineLoad())
    names = ("verifications", "proposed_tokens", "accepted_tokens")
    totals = [registry.get_sample_value(f"worker_speculation_{name}_total") for name in names]
    assert totals == [15, 45, 20]
    shown = {
        name: [registry.get_sample_value(f"worker_speculation_{name}", {"batch": batch}) for batch in "18"]
        for name in ("gain", "on", "steps_total")
    }
    assert shown == {"gain": [1.4, 0.9], "on": [1, 0], "steps_total": [70, 30]}
