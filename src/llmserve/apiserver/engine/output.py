"""Engine outputs from the wire into vLLM's OutputProcessor, which detokenizes and finds stop strings."""

from typing import Any

import numpy as np
import torch
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine import FinishReason as VllmFinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import PrefillStats as VllmPrefillStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from llmserve.apiserver.http.errors import as_serving_error
from llmserve.core.errors import LLMServeError
from llmserve.core.outcome import FinishReason
from llmserve.core.request import EngineOutput, HandoverReport, Logprobs, PooledOutput, PrefillStats

_FINISH = {FinishReason(str(reason)): reason for reason in VllmFinishReason}


class OutputSink:
    """Passes the outputs of one sequence on to the user. request_id: its id at the OutputProcessor.
    handovers: list of the HTTP request, to which this sequence's reports are added."""

    def __init__(
        self,
        request_id: str,
        processor: OutputProcessor,
        queue: RequestOutputCollector,
        handovers: list[HandoverReport],
    ) -> None:
        self._request_id, self._processor, self._queue = request_id, processor, queue
        self._handovers = handovers

    def push(self, output: EngineOutput) -> bool:
        if output.handover is not None:
            self._handovers.append(output.handover)
        logprobs, prompt_logprobs, stats = output.logprobs, output.prompt_logprobs, output.prefill_stats
        core_output = EngineCoreOutput(
            request_id=self._request_id,
            new_token_ids=list(output.token_ids),
            new_logprobs=None if logprobs is None else LogprobsLists(*_arrays(logprobs)),
            new_prompt_logprobs_tensors=None if prompt_logprobs is None else _tensors(prompt_logprobs),
            finish_reason=None if output.finish_reason is None else _FINISH[output.finish_reason],
            stop_reason=output.stop_reason,
            prefill_stats=None if stats is None else _stats(stats),
            pooling_output=None if output.pooled is None else _pooled(output.pooled),
        )
        processed = self._processor.process_outputs([core_output])
        return output.finish_reason is not None or bool(processed.reqs_to_abort)

    def fail(self, error: LLMServeError) -> None:
        self._queue.put(as_serving_error(error))


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
