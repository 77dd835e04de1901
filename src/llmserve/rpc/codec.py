"""Converts between protobuf messages and the types of the domain. Nothing else does."""

import json
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

from llmserve.core.adapters import AdapterLoad, AdapterTier
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import AdapterDigest, RequestId, TenantId
from llmserve.core.json_object import json_object
from llmserve.core.request import (
    Acceptance,
    EngineLoad,
    EngineOutput,
    EngineRequest,
    FinishReason,
    HandoverReport,
    Logprobs,
    Outcome,
    PairStatus,
    PooledOutput,
    PrefillStats,
    SamplingLimits,
    WorkerRole,
)
from llmserve.core.stats import BatchGain, SpeculationReport
from llmserve.rpc.gen.llmserve.v1 import common_pb2, worker_pb2

_FINISH_TO_WIRE: dict[FinishReason, worker_pb2.FinishReason] = {
    reason: getattr(worker_pb2, f"FINISH_REASON_{reason.name}") for reason in FinishReason
}
_FINISH_FROM_WIRE = {value: reason for reason, value in _FINISH_TO_WIRE.items()}
_ROLE_TO_WIRE: dict[WorkerRole, common_pb2.WorkerRole] = {
    role: getattr(common_pb2, f"WORKER_ROLE_{role.name}") for role in WorkerRole
}
_ROLE_FROM_WIRE = {value: role for role, value in _ROLE_TO_WIRE.items()}
_OUTCOME_TO_WIRE: dict[Outcome, common_pb2.Outcome] = {
    outcome: getattr(common_pb2, f"OUTCOME_{outcome.name}") for outcome in Outcome
}
_OUTCOME_FROM_WIRE = {value: outcome for outcome, value in _OUTCOME_TO_WIRE.items()}


def encode_role(role: WorkerRole) -> common_pb2.WorkerRole:
    return _ROLE_TO_WIRE[role]


def decode_role(role: common_pb2.WorkerRole) -> WorkerRole:
    """Errors: InvalidRequest for an unspecified or unknown role."""
    if role not in _ROLE_FROM_WIRE:
        raise InvalidRequest(f"unknown worker role {role}")
    return _ROLE_FROM_WIRE[role]


def encode_outcome(outcome: Outcome) -> common_pb2.Outcome:
    return _OUTCOME_TO_WIRE[outcome]


def decode_outcome(outcome: common_pb2.Outcome) -> Outcome:
    return _OUTCOME_FROM_WIRE.get(outcome, Outcome.FAILED)


def encode_params(params: Mapping[str, Any] | None) -> bytes:
    return b"" if params is None else json.dumps(dict(params), separators=(",", ":")).encode()


def decode_params(raw: bytes) -> dict[str, Any] | None:
    """Errors: InvalidRequest when it is not a JSON object."""
    if not raw:
        return None
    try:
        return json_object(raw)
    except ValueError as error:
        raise InvalidRequest(f"kv_transfer_params is {error}") from error


def encode_request(request: EngineRequest) -> worker_pb2.WorkerSessionRequest:
    """A prompt is filled in where it lies, since putting it into a message copies it."""
    message = worker_pb2.WorkerSessionRequest()
    limits, generate = request.limits, message.generate
    generate.request_id = request.request_id
    generate.prompt_token_ids.extend(request.prompt_token_ids)
    generate.limits.max_tokens, generate.limits.min_tokens = limits.max_tokens, limits.min_tokens
    generate.limits.stop_token_ids.extend(sorted(limits.stop_token_ids))
    generate.sampling_params = request.sampling_params
    generate.cache_salt = request.cache_salt
    generate.tenant, generate.adapter = request.tenant, request.adapter
    generate.priority = request.priority
    generate.kv_transfer_params = encode_params(request.kv_transfer_params)
    generate.traceparent = request.traceparent
    generate.pooling_params = request.pooling_params
    return message


def decode_request(message: worker_pb2.GenerateRequest) -> EngineRequest:
    """Errors: InvalidRequest."""
    if not message.request_id:
        raise InvalidRequest("request_id is empty")
    if not message.prompt_token_ids:
        raise InvalidRequest("prompt_token_ids is empty")
    if message.limits.max_tokens < 1:
        raise InvalidRequest("limits.max_tokens must be at least 1")
    return EngineRequest(
        request_id=RequestId(message.request_id),
        prompt_token_ids=message.prompt_token_ids[:],
        limits=SamplingLimits(
            max_tokens=message.limits.max_tokens,
            min_tokens=message.limits.min_tokens,
            stop_token_ids=frozenset(message.limits.stop_token_ids),
        ),
        sampling_params=message.sampling_params,
        cache_salt=message.cache_salt,
        tenant=TenantId(message.tenant),
        adapter=AdapterDigest(message.adapter),
        priority=message.priority,
        kv_transfer_params=decode_params(message.kv_transfer_params),
        traceparent=message.traceparent,
        pooling_params=message.pooling_params,
    )


def encode_outputs(outputs: Iterable[EngineOutput]) -> worker_pb2.WorkerSessionResponse:
    """Deltas are filled where they lie, since putting one into a message copies it. Most are one token and
    nothing else: a field that is absent costs one comparison."""
    response = worker_pb2.WorkerSessionResponse()
    for output in outputs:
        delta = response.deltas.add()
        delta.request_id = output.request_id
        delta.token_ids.extend(output.token_ids)
        if output.error:
            delta.error = output.error
        if output.kv_transfer_params is not None:
            delta.kv_transfer_params = encode_params(output.kv_transfer_params)
        if output.finish_reason is not None:
            delta.finish_reason = _FINISH_TO_WIRE[output.finish_reason]
        if isinstance(output.stop_reason, int):
            delta.stop_token_id = output.stop_reason
        elif output.stop_reason is not None:
            delta.stop_string = output.stop_reason
        if output.logprobs is not None:
            delta.logprobs.CopyFrom(_encode_logprobs(output.logprobs))
        if output.prompt_logprobs is not None:
            delta.prompt_logprobs.CopyFrom(_encode_logprobs(output.prompt_logprobs))
        if output.prefill_stats is not None:
            delta.prefill_stats.CopyFrom(_encode_stats(output.prefill_stats))
        if output.handover is not None:
            delta.handover.CopyFrom(_encode_handover(output.handover))
        if (load := output.adapter_load) is not None:
            delta.adapter_load.CopyFrom(worker_pb2.AdapterLoad(tier=load.tier, seconds=load.seconds))
        if output.acceptance is not None:
            delta.acceptance.CopyFrom(_encode_acceptance(output.acceptance))
        if (pooled := output.pooled) is not None:
            delta.pooled.CopyFrom(worker_pb2.Pooled(shape=pooled.shape, values=pooled.values))
    return response


def decode_output(delta: worker_pb2.TokenDelta) -> EngineOutput:
    """Errors: InvalidRequest for kv_transfer_params that are not a JSON object, and an unknown tier."""
    has, stop, params = delta.HasField, delta.WhichOneof("stop_reason"), delta.kv_transfer_params
    return EngineOutput(
        request_id=RequestId(delta.request_id),
        token_ids=delta.token_ids[:],
        finish_reason=_FINISH_FROM_WIRE.get(delta.finish_reason),
        stop_reason=getattr(delta, stop) if stop else None,
        logprobs=_decode_logprobs(delta.logprobs) if has("logprobs") else None,
        prompt_logprobs=_decode_logprobs(delta.prompt_logprobs) if has("prompt_logprobs") else None,
        kv_transfer_params=decode_params(params) if params else None,
        prefill_stats=_decode_stats(delta.prefill_stats) if has("prefill_stats") else None,
        error=delta.error,
        handover=_decode_handover(delta.handover) if has("handover") else None,
        adapter_load=_decode_adapter_load(delta.adapter_load) if has("adapter_load") else None,
        acceptance=_decode_acceptance(delta.acceptance) if has("acceptance") else None,
        pooled=PooledOutput(tuple(delta.pooled.shape), delta.pooled.values) if has("pooled") else None,
    )


def _decode_adapter_load(message: worker_pb2.AdapterLoad) -> AdapterLoad:
    if message.tier not in set(AdapterTier):
        raise InvalidRequest(f"unknown tier {message.tier!r} of an adapter")
    return AdapterLoad(AdapterTier(message.tier), message.seconds)


_ACCEPTANCE_FIELDS = tuple(Acceptance.__dataclass_fields__)


def _encode_acceptance(acceptance: Acceptance) -> worker_pb2.Acceptance:
    return worker_pb2.Acceptance(**{name: getattr(acceptance, name) for name in _ACCEPTANCE_FIELDS})


def _decode_acceptance(message: worker_pb2.Acceptance) -> Acceptance:
    return Acceptance(**{name: getattr(message, name) for name in _ACCEPTANCE_FIELDS})


def _encode_logprobs(logprobs: Logprobs) -> worker_pb2.Logprobs:
    return worker_pb2.Logprobs(
        width=logprobs.width,
        token_ids=logprobs.token_ids,
        logprobs=logprobs.logprobs,
        ranks=logprobs.ranks,
    )


def _decode_logprobs(message: worker_pb2.Logprobs) -> Logprobs:
    return Logprobs(message.width, message.token_ids, message.logprobs, message.ranks)


def _encode_stats(stats: PrefillStats) -> worker_pb2.PrefillStats:
    return worker_pb2.PrefillStats(
        prompt_tokens=stats.prompt_tokens,
        local_cached_tokens=stats.local_cached_tokens,
        external_cached_tokens=stats.external_cached_tokens,
        cache_creation_tokens=stats.cache_creation_tokens,
    )


def _decode_stats(message: worker_pb2.PrefillStats) -> PrefillStats:
    return PrefillStats(
        message.prompt_tokens,
        message.local_cached_tokens,
        message.external_cached_tokens,
        message.cache_creation_tokens,
    )


def _encode_handover(report: HandoverReport) -> worker_pb2.Handover:
    return worker_pb2.Handover(
        transport=report.transport,
        bytes=report.bytes,
        seconds=report.seconds,
        fallbacks=report.fallbacks,
        reason=report.reason,
        pushed=report.pushed,
    )


def _decode_handover(message: worker_pb2.Handover) -> HandoverReport:
    fallbacks = tuple(message.fallbacks)
    return HandoverReport(
        message.transport, message.bytes, message.seconds, fallbacks, message.reason, message.pushed
    )


_LOAD_FIELDS = tuple(name for name in EngineLoad.__dataclass_fields__ if name not in ("pairs", "speculation"))
_PAIR_FIELDS = tuple(PairStatus.__dataclass_fields__)
_PAIR_VALUES = attrgetter(*_PAIR_FIELDS)
_GAIN_FIELDS = tuple(BatchGain.__dataclass_fields__)
_SPECULATION_FIELDS = ("verifications", "proposed_tokens", "accepted_tokens")


def encode_load(load: EngineLoad) -> common_pb2.WorkerLoad:
    pairs = [
        common_pb2.TransportPair(**{name: getattr(p, name) for name in _PAIR_FIELDS}) for p in load.pairs
    ]
    speculation = _encode_speculation(load.speculation) if load.speculation else None
    fields = {name: getattr(load, name) for name in _LOAD_FIELDS}
    return common_pb2.WorkerLoad(**fields, pairs=pairs, speculation=speculation)


def decode_load(message: common_pb2.WorkerLoad) -> EngineLoad:
    pairs = tuple(PairStatus(*_PAIR_VALUES(pair)) for pair in message.pairs)
    speculation = _decode_speculation(message.speculation) if message.HasField("speculation") else None
    fields = {name: getattr(message, name) for name in _LOAD_FIELDS}
    return EngineLoad(**fields, pairs=pairs, speculation=speculation)


def _encode_speculation(report: SpeculationReport) -> common_pb2.Speculation:
    gains = [
        common_pb2.BatchGain(**{name: getattr(one, name) for name in _GAIN_FIELDS}) for one in report.gains
    ]
    return common_pb2.Speculation(
        **{name: getattr(report, name) for name in _SPECULATION_FIELDS}, gains=gains
    )


def _decode_speculation(message: common_pb2.Speculation) -> SpeculationReport:
    gains = tuple(BatchGain(**{name: getattr(one, name) for name in _GAIN_FIELDS}) for one in message.gains)
    return SpeculationReport(**{name: getattr(message, name) for name in _SPECULATION_FIELDS}, gains=gains)
