"""vLLM's own metrics, `vllm:*`, counted as AsyncLLM does: the layer that we leave out (decision 0002)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, RequestStateStats

from llmserve.metrics.passed_on import PassedOn

_PREFIX = "vllm:"
# Its labels are lists of adapter names: a series for each combination of adapters that ever ran together.
_UNBOUNDED = frozenset({"vllm:lora_requests_info"})


@dataclass(slots=True)
class _Running:
    stats: RequestStateStats
    prompt_tokens: int
    max_tokens: int | None
    cached_tokens: int = 0
    is_prefilling: bool = True


class OwnMetrics:
    """Told of each request and each step. One in a process: vLLM counts in a registry that all share."""

    def __init__(self, config: Any, registry: CollectorRegistry) -> None:
        """config: the engine's, once it has started. registry: what the worker's page shows."""
        self._counts = PrometheusStatLogger(config)
        self._counts.log_engine_initialized()
        self._running: dict[str, _Running] = {}
        self._adapters = LoRARequestStates()
        registry.register(PassedOn(REGISTRY, _PREFIX, _UNBOUNDED))

    def added(self, request: EngineCoreRequest) -> None:
        params = request.sampling_params
        self._running[request.request_id] = _Running(
            RequestStateStats(arrival_time=request.arrival_time),
            prompt_tokens=len(request.prompt_token_ids or ()),
            max_tokens=params.max_tokens if params else None,
        )

    def aborted(self, request_ids: Iterable[str]) -> None:
        """vLLM counts only requests that end by themselves."""
        for request_id in request_ids:
            self._running.pop(request_id, None)

    def record(self, outputs: EngineCoreOutputs) -> None:
        iteration = IterationStats() if outputs.outputs else None
        for output in outputs.outputs:
            running = self._running.get(output.request_id)
            if running is not None and iteration is not None:
                self._count(iteration, running, output, outputs.timestamp)
        self._counts.record(outputs.scheduler_stats, iteration)

    def _count(
        self, iteration: IterationStats, running: _Running, output: EngineCoreOutput, at: float
    ) -> None:
        """at: the engine's clock, seconds."""
        iteration.update_from_output(output, at, running.is_prefilling, running.stats, self._adapters, None)
        if running.is_prefilling and output.prefill_stats is not None:
            running.cached_tokens = output.prefill_stats.num_cached_tokens
        running.is_prefilling = False
        if output.finish_reason is not None:
            self._end(iteration, self._running.pop(output.request_id), output)

    def _end(self, iteration: IterationStats, ended: _Running, output: EngineCoreOutput) -> None:
        assert output.finish_reason is not None
        iteration.update_from_finished_request(
            output.finish_reason,
            output.request_id,
            ended.prompt_tokens,
            ended.max_tokens,
            ended.stats,
            ended.cached_tokens,
        )
        ParentRequest.observe_finished_request(None, iteration, ended.stats.num_generation_tokens)
