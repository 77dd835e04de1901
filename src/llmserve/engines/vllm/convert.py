"""Converts our requests and outputs to and from those of vLLM's EngineCore."""

import time
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from vllm.lora.request import LoRARequest
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine import FinishReason as VllmFinishReason
from vllm.v1.metrics.stats import PrefillStats as VllmPrefillStats
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import RequestId
from llmserve.core.kv_params import for_adapter
from llmserve.core.request import (
    Acceptance,
    EngineOutput,
    EngineRequest,
    FinishReason,
    HandoverReport,
    Logprobs,
    PooledOutput,
    PrefillStats,
)

_Params = TypeVar("_Params", SamplingParams, PoolingParams)
_FINISH = {reason: FinishReason(str(reason)) for reason in VllmFinishReason}


def to_core_request(request: EngineRequest, adapter: LoRARequest | None = None) -> EngineCoreRequest:
    """adapter: as the engine knows that of the request. Errors: InvalidRequest when its parameters are not
    vLLM's msgpack encoding."""
    return EngineCoreRequest(
        request_id=request.request_id,
        prompt_token_ids=list(request.prompt_token_ids),
        mm_features=None,
        sampling_params=None if request.pooling_params else _sampling_params(request),
        pooling_params=_decode(request.pooling_params, PoolingParams) if request.pooling_params else None,
        arrival_time=time.time(),
        lora_request=adapter,
        cache_salt=request.cache_salt or None,
        data_parallel_rank=None,
        priority=request.priority,
    )


def _sampling_params(request: EngineRequest) -> SamplingParams:
    """Returns the client's parameters; without any, greedy ones within the limits (conformance tests,
    probes)."""
    params = _decode(request.sampling_params, SamplingParams) if request.sampling_params else _greedy(request)
    params.max_tokens = request.limits.max_tokens
    params.min_tokens = request.limits.min_tokens
    if kv := _kv_transfer(request):
        extra = dict(params.extra_args or {})
        params.extra_args = {**extra, "kv_transfer_params": kv}
    return params


def _kv_transfer(request: EngineRequest) -> dict[str, Any]:
    """The tenant lets a request into the KV store (engines/store), where the adapter marks its blocks.
    Without a namespace it stays out: its blocks would be found by whatever model comes next."""
    params = dict(for_adapter(request.kv_transfer_params, request.adapter) or {})
    if request.cache_salt and request.tenant:
        params["tenant"] = request.tenant
        if request.adapter:
            params["adapter"] = request.adapter
    return params


def _decode(raw: bytes, kind: type[_Params]) -> _Params:
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"the request's {kind.__name__} cannot be decoded: {error}") from error


def _greedy(request: EngineRequest) -> SamplingParams:
    limits = request.limits
    return SamplingParams(
        temperature=0.0,
        max_tokens=limits.max_tokens,
        min_tokens=limits.min_tokens,
        stop_token_ids=sorted(limits.stop_token_ids),
        detokenize=False,
    )


def to_engine_output(
    output: EngineCoreOutput,
    handover: HandoverReport | None = None,
    *,
    ungrammatical: bool = False,
    switched_off: bool = False,
) -> EngineOutput:
    """Returns an output of vLLM in our own form. ungrammatical: if the output is an error, the request's
    grammar is the reason. switched_off: as in Acceptance."""
    prompt_logprobs, stats = output.new_prompt_logprobs_tensors, output.prefill_stats
    return EngineOutput(
        request_id=RequestId(output.request_id),
        token_ids=output.new_token_ids,
        finish_reason=None if output.finish_reason is None else _FINISH[output.finish_reason],
        stop_reason=output.stop_reason,
        logprobs=None if output.new_logprobs is None else _sampled(output.new_logprobs),
        prompt_logprobs=None if prompt_logprobs is None else _prompt(prompt_logprobs),
        kv_transfer_params=output.kv_transfer_params,
        prefill_stats=None if stats is None else _prefill_stats(stats),
        error=_error(ungrammatical) if output.finish_reason is VllmFinishReason.ERROR else "",
        handover=handover,
        acceptance=_acceptance(output.spec_decode_metrics, switched_off),
        pooled=None if output.pooling_output is None else _pooled(output.pooling_output),
    )


def _acceptance(counted: RequestSpecDecodeMetrics | None, switched_off: bool) -> Acceptance | None:
    if counted is None:
        return None
    accepted = sum(tokens * steps for tokens, steps in enumerate(counted.histogram))
    return Acceptance(sum(counted.histogram), counted.num_draft_tokens, accepted, switched_off)


def _pooled(values: torch.Tensor) -> PooledOutput:
    array = np.ascontiguousarray(values.float().numpy(), dtype="<f4")
    return PooledOutput(array.shape, array.tobytes())


def _error(ungrammatical: bool) -> str:
    """Returns the text of an error. The apiserver raises the class that is named before a colon."""
    if ungrammatical:
        return f"{InvalidRequest.__name__}: the engine cannot compile the request's structured output"
    return "the engine could not go on with the request"


def _sampled(logprobs: LogprobsLists) -> Logprobs:
    return _pack(logprobs.logprob_token_ids, logprobs.logprobs, logprobs.sampled_token_ranks)


def _prompt(logprobs: LogprobsTensors) -> Logprobs:
    return _pack(
        logprobs.logprob_token_ids.numpy(), logprobs.logprobs.numpy(), logprobs.selected_token_ranks.numpy()
    )


def _pack(token_ids: Any, logprobs: Any, ranks: Any) -> Logprobs:
    ids = np.ascontiguousarray(token_ids, dtype="<i4")
    return Logprobs(
        width=ids.shape[1],
        token_ids=ids.tobytes(),
        logprobs=np.ascontiguousarray(logprobs, dtype="<f4").tobytes(),
        ranks=np.ascontiguousarray(ranks, dtype="<i4").tobytes(),
    )


def _prefill_stats(stats: VllmPrefillStats) -> PrefillStats:
    return PrefillStats(
        stats.num_prompt_tokens,
        stats.num_local_cached_tokens,
        stats.num_external_cached_tokens,
        stats.num_cache_creation_tokens,
    )
