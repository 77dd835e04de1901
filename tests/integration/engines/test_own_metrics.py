"""vLLM's own metrics, told as the engine is told: requests, steps, aborts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats

from llmserve.config.schema import EngineConfig
from llmserve.engines.spec import EngineSpec
from llmserve.engines.vllm.args import engine_args
from llmserve.engines.vllm.stats import VllmMetrics
from tests.integration.engines.tiny_spec import tiny_spec, write_config

LABELS = {"engine": "0", "model_name": "tiny"}
ARRIVED, QUEUED, SCHEDULED = 100.0, 10.0, 10.5  # the first is of the wall clock, the others of the engine's


class Told:
    """The metrics of an engine, and the samples that they make."""

    def __init__(self, spec: EngineSpec) -> None:
        config = engine_args(spec, "ipc:///nowhere", "card.json").create_engine_config()
        self._registry = CollectorRegistry()
        self.metrics = VllmMetrics(config, self._registry)

    def __getitem__(self, name: str) -> float | None:
        return self._registry.get_sample_value(name, LABELS)

    def of(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(name, LABELS | labels)

    def add(self, request_id: str) -> None:
        self.metrics.added(
            EngineCoreRequest(
                request_id=request_id,
                prompt_token_ids=[1] * 8,
                mm_features=None,
                sampling_params=SamplingParams(max_tokens=4),
                pooling_params=None,
                arrival_time=ARRIVED,
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
        )

    def step(self, *outputs: EngineCoreOutput, at: float = 11.0, running: int = 0) -> None:
        stats = SchedulerStats(num_running_reqs=running, kv_cache_usage=0.25)
        stats.kv_connector_stats = {"LLMServeConnector": {"leased_blocks": 3}}
        self.metrics.record(EngineCoreOutputs(outputs=list(outputs), scheduler_stats=stats, timestamp=at))


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    """With the KV store beside the hand-over: then vLLM wants metrics of both connectors."""
    spec = tiny_spec(
        write_config(tmp_path), EngineConfig(max_model_len=256, dtype="float32"), kv_store=("127.0.0.1:1",)
    )
    try:
        yield Told(spec)
    finally:
        unregister_vllm_metrics()


def first(request_id: str) -> EngineCoreOutput:
    prefill = PrefillStats()
    prefill.set(num_prompt_tokens=8, num_local_cached_tokens=2, num_external_cached_tokens=5)
    events = [
        EngineCoreEvent(EngineCoreEventType.QUEUED, QUEUED),
        EngineCoreEvent(EngineCoreEventType.SCHEDULED, SCHEDULED),
    ]
    return EngineCoreOutput(request_id, [7], prefill_stats=prefill, events=events)


def test_the_state_of_the_engine_is_that_of_its_last_step(told: Told) -> None:
    told.step(running=5)
    told.step(running=2)
    assert told["vllm:num_requests_running"] == 2
    assert told["vllm:kv_cache_usage_perc"] == 0.25


def test_a_request_from_its_arrival_to_its_end(told: Told) -> None:
    told.add("a")
    told.step(first("a"), at=11.0)
    told.step(EngineCoreOutput("a", [8, 9]), at=11.25)
    told.step(EngineCoreOutput("a", [10], finish_reason=FinishReason.LENGTH), at=11.5)
    assert told["vllm:generation_tokens_total"] == 4
    assert told["vllm:prompt_tokens_total"] == 8
    assert told.of("vllm:prompt_tokens_by_source_total", source="external_kv_transfer") == 5
    assert told["vllm:time_to_first_token_seconds_count"] == 1
    assert told["vllm:inter_token_latency_seconds_sum"] == 0.5
    assert told["vllm:request_queue_time_seconds_sum"] == SCHEDULED - QUEUED
    assert told["vllm:request_generation_tokens_sum"] == 4
    assert told["vllm:request_prefill_kv_computed_tokens_sum"] == 1
    assert told.of("vllm:request_success_total", finished_reason="length") == 1


def test_one_that_is_given_up_is_forgotten(told: Told) -> None:
    told.add("a")
    told.step(first("a"))
    told.metrics.aborted(["a", "never heard of"])
    told.step(EngineCoreOutput("a", [], finish_reason=FinishReason.ABORT))
    assert told.of("vllm:request_success_total", finished_reason="abort") == 0
    assert told["vllm:generation_tokens_total"] == 1
