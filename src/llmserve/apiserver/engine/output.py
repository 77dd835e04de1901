"""Engine outputs from the wire into vLLM's OutputProcessor, which detokenizes and finds stop strings."""

from typing import Any

import numpy as np
import torch
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine import FinishReason as VllmFinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import PrefillStats as VllmPrefillStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from llmserve.apiserver.http.errors import as_serving_error
from llmserve.core.errors import LLMServeError
from llmserve.core.ids import RequestId
from llmserve.core.request import (
    EngineOutput,
    FinishReason,
    HandoverReport,
    Logprobs,
    PooledOutput,
    PrefillStats,
)

# Of one sequence: as many become text without a noticeable pause of the event loop.
_MOST_KEPT_TOKENS = 64

_FINISH = {FinishReason(str(reason)): reason for reason in VllmFinishReason}


class OutputSink:
    """Passes the outputs of one sequence on to the user. request: as the OutputProcessor knows it. handovers:
    list of the HTTP request, to which this sequence's reports are added.

    Of an answer that is sent at its end, and that no stop string may end before, tokens are kept here for
    some steps and made text together."""

    def __init__(
        self,
        request: EngineCoreRequest,
        processor: OutputProcessor,
        queue: RequestOutputCollector,
        handovers: list[HandoverReport],
    ) -> None:
        self._request_id, self._processor, self._queue = request.request_id, processor, queue
        self._handovers = handovers
        params = request.sampling_params
        ends_whole = params is not None and params.output_kind is RequestOutputKind.FINAL_ONLY
        self._most_kept = _MOST_KEPT_TOKENS if ends_whole and not params.stop else 0
        self._kept: list[int] = []

    def push(self, output: EngineOutput) -> bool:
        if len(self._kept) < self._most_kept and _is_only_tokens(output):
            self._kept.extend(output.token_ids)
            return False
        kept, self._kept = self._kept, []
        if output.handover is not None:
            self._handovers.append(output.handover)
        logprobs, prompt_logprobs, stats = output.logprobs, output.prompt_logprobs, output.prefill_stats
        core_output = EngineCoreOutput(
            request_id=self._request_id,
            new_token_ids=[*kept, *output.token_ids],
            new_logprobs=None if logprobs is None else LogprobsLists(*_arrays(logprobs)),
            new_prompt_logprobs_tensors=None if prompt_logprobs is None else _tensors(prompt_logprobs),
            finish_reason=None if output.finish_reason is None else _FINISH[output.finish_reason],
            stop_reason=output.stop_reason,
            prefill_stats=None if stats is None else _stats(stats),
            pooling_output=None if output.pooled is None else _pooled(output.pooled),
        )
        processed = self._processor.process_outputs([core_output])
        return output.finish_reason is not None or bool(processed.reqs_to_abort)

    def flush(self) -> None:
        """Passes on what is kept, and keeps nothing any more."""
        self._most_kept = 0
        if self._kept:
            self.push(EngineOutput(RequestId(self._request_id)))

    def fail(self, error: LLMServeError) -> None:
        self._queue.put(as_serving_error(error))


def _is_only_tokens(output: EngineOutput) -> bool:
    """Whether there is nothing else in an output that anybody would miss until the next one."""
    return (
        output.finish_reason is None
        and output.logprobs is None
        and output.prompt_logprobs is None
        and output.prefill_stats is None
        and output.handover is None
    )


def _arrays(logprobs: Logprobs) -> tuple[Any, Any, Any]:
    """Returns token_ids [rows, width], logprobs [rows, width], ranks [rows]."""
    shape = (-1, logprobs.width)
    return (
        np.frombuffer(logprobs.token_ids, dtype="<i4").reshape(shape),
        np.frombuffer(logprobs.logprobs, dtype="<f4").reshape(shape),
        np.frombuffer(logprobs.ranks, dtype="<i4"),
    )


def _tensors(logprobs: Logprobs) -> LogprobsTensors:
    """Copies: torch wants writable memory."""
    return LogprobsTensors(*(torch.from_numpy(array.copy()) for array in _arrays(logprobs)))


def _pooled(pooled: PooledOutput) -> torch.Tensor:
    """Copies: torch wants writable memory."""
    return torch.from_numpy(np.frombuffer(pooled.values, dtype="<f4").reshape(pooled.shape).copy())


def _stats(stats: PrefillStats) -> VllmPrefillStats:
    result = VllmPrefillStats()
    result.set(stats.prompt_tokens, stats.local_cached_tokens, stats.external_cached_tokens)
    result.num_cache_creation_tokens = stats.cache_creation_tokens
    return result
