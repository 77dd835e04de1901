"""What vLLM's steps report: as an EngineLoad, as lease changes, and as vLLM's own metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, RequestStateStats

from llmserve.core.ids import LeaseId
from llmserve.core.request import EngineLoad, HandoverReport, LeaseChange, LeaseState, PairStatus
from llmserve.core.stats import BatchGain, SpeculationReport
from llmserve.engines.speculation.meter import GainRow
from llmserve.engines.vllm.args import CONNECTOR
from llmserve.metrics.pages import PassedOn

_FROM_CONNECTOR = (
    "leased_blocks",
    "orphan_blocks",
    "transferred_bytes",
    "transfer_failures",
    "last_transport",
)


class EngineStats:
    """`record` is called with each step, `load` for each heartbeat. Both are cheap."""

    def __init__(self) -> None:
        self.total_blocks = 0
        self.became_idle = False  # with the last step: nothing runs, and that or what is held is new
        self._load = EngineLoad()

    def record(self, stats: Any) -> tuple[list[LeaseChange], dict[str, HandoverReport]]:
        """stats: vllm.v1.metrics.stats.SchedulerStats. Returns the lease changes that it carries, and the
        pulls that ended, by request."""
        load = self._load
        before = _activity(load)
        load.running_requests = stats.num_running_reqs
        load.waiting_requests = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        load.used_blocks = round(stats.kv_cache_usage * self.total_blocks)
        connector = _handover(stats.kv_connector_stats or {})
        for name in _FROM_CONNECTOR:
            if name in connector:
                setattr(load, name, connector[name])
        self._record_speculation(stats.spec_decoding_stats, connector.get("speculation"))
        is_idle = not (load.running_requests or load.waiting_requests)
        self.became_idle = is_idle and _activity(load) != before
        leases = [
            LeaseChange(LeaseId(lease_id), LeaseState(state), blocks, remaining)
            for lease_id, state, blocks, remaining in connector.get("lease_events", ())
        ]
        reports = {request_id: _report(*fields) for request_id, *fields in connector.get("pulls", ())}
        return leases, reports

    def _record_speculation(self, verified: Any, gains: list[GainRow] | None) -> None:
        """verified: vllm.v1.spec_decode.metrics.SpecDecodingStats of the step; None: it verified nothing."""
        if verified is None and gains is None:
            return
        known = self._load.speculation or SpeculationReport()
        if verified is not None:
            known = replace(
                known,
                verifications=known.verifications + verified.num_drafts,
                proposed_tokens=known.proposed_tokens + verified.num_draft_tokens,
                accepted_tokens=known.accepted_tokens + verified.num_accepted_tokens,
            )
        if gains is not None:
            known = replace(known, gains=tuple(BatchGain(*row) for row in gains))
        self._load.speculation = known

    def record_pairs(self, pairs: Sequence[PairStatus]) -> None:
        self._load.pairs = pairs

    def load(self) -> EngineLoad:
        return self._load


def _activity(load: EngineLoad) -> tuple[int, ...]:
    return load.running_requests, load.waiting_requests, load.used_blocks, load.leased_blocks


def _report(
    transport: str, size_bytes: int, seconds: float, fallbacks: Iterable[str], *others: Any
) -> HandoverReport:
    """The fields of a report after their way between two processes, which turns tuples into lists."""
    return HandoverReport(transport, size_bytes, seconds, tuple(fallbacks), *others)


def _handover(stats: Mapping[str, Any]) -> Mapping[str, Any]:
    """With a store beside it, vLLM reports the statistics of each connector under its name."""
    mine = stats.get(CONNECTOR, stats)
    return mine if isinstance(mine, Mapping) else mine.data


_PREFIX = "vllm:"
# Its labels are lists of adapter names: a series for each combination of adapters that ever ran together.
_UNBOUNDED = frozenset({"vllm:lora_requests_info"})


@dataclass(slots=True)
class _CountedRequest:
    stats: RequestStateStats
    prompt_tokens: int
    max_tokens: int | None
    cached_tokens: int = 0
    is_prefilling: bool = True


class VllmMetrics:
    """Counts each request and each step. There is one in a process, since vLLM's registry is shared."""

    def __init__(self, config: Any, registry: CollectorRegistry) -> None:
        """config: the engine's, once it has started. registry: what the worker's page shows."""
        self._counts = PrometheusStatLogger(config)
        self._counts.log_engine_initialized()
        self._running: dict[str, _CountedRequest] = {}
        self._adapters = LoRARequestStates()
        registry.register(PassedOn(REGISTRY, _PREFIX, _UNBOUNDED))

    def added(self, request: EngineCoreRequest) -> None:
        params = request.sampling_params
        self._running[request.request_id] = _CountedRequest(
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
        self, iteration: IterationStats, running: _CountedRequest, output: EngineCoreOutput, at: float
    ) -> None:
        """at: the engine's clock, seconds."""
        iteration.update_from_output(output, at, running.is_prefilling, running.stats, self._adapters, None)
        if running.is_prefilling and output.prefill_stats is not None:
            running.cached_tokens = output.prefill_stats.num_cached_tokens
        running.is_prefilling = False
        if output.finish_reason is not None:
            self._end(iteration, self._running.pop(output.request_id), output)

    def _end(self, iteration: IterationStats, ended: _CountedRequest, output: EngineCoreOutput) -> None:
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
