"""A record as it is shown: as JSON, with units in the names, and as a row of the list of requests. Pure."""

import time
from datetime import UTC, datetime
from typing import Any

from llmserve.apiserver.explain.phases import TimePhase, phases
from llmserve.apiserver.explain.record import AttemptRecord, HttpRecord, SequenceRecord
from llmserve.core.adapters import AdapterLoad, AdapterTier
from llmserve.core.request import Acceptance, HandoverReport
from llmserve.rpc.adapters import decode_tier
from llmserve.rpc.gen.llmserve.v1 import router_pb2


def view(record: HttpRecord, apiserver: str) -> dict[str, Any]:
    """Times are seconds since the request came; None: that has not happened."""
    ended_at = record.ended_at or time.monotonic()
    return {
        "request_id": record.ids[0],
        "response_ids": record.ids[1:],
        "trace_id": record.trace_id or None,
        "tenant": record.tenant,
        "apiserver": apiserver,
        "path": record.path,
        "model": record.model or None,
        "came_at": datetime.fromtimestamp(record.started_unix, UTC).isoformat(timespec="milliseconds"),
        "running": not record.ended_at,
        "status": record.status or None,
        "error": record.error or None,
        "seconds": _seconds(ended_at, record),
        "sequences": [_sequence(one, record, ended_at) for one in record.sequences],
    }


def row(record: HttpRecord) -> dict[str, Any]:
    """Tokens are those of all sequences; times and places are those of the first. None: that has not
    happened."""
    first = record.sequences[0] if record.sequences else SequenceRecord()
    attempt = first.attempts[-1] if first.attempts else None
    handovers = [report for one in record.sequences for report in one.handovers]
    return {
        "request_id": record.ids[0],
        "tenant": record.tenant,
        "model": record.model or None,
        "adapter": first.adapter or None,
        "path": record.path,
        "came_at": datetime.fromtimestamp(record.started_unix, UTC).isoformat(timespec="milliseconds"),
        "running": not record.ended_at,
        "status": record.status or None,
        "outcome": first.outcome or None,
        "error": record.error or first.error or None,
        "seconds": round((record.ended_at or time.monotonic()) - record.started_at, 6),
        "queue_seconds": round(sum(one.queue_seconds for one in first.attempts), 6),
        "first_token_seconds": _seconds(first.first_token_at, record),
        "prompt_tokens": sum(one.prompt_tokens for one in record.sequences),
        "cached_tokens": sum(one.device_cached_tokens + one.store_cached_tokens for one in record.sequences),
        "output_tokens": sum(one.output_tokens for one in record.sequences),
        "prefill": attempt.prefill or None if attempt else None,
        "decode": attempt.decode or None if attempt else None,
        "transport": next((report.transport for report in handovers if report.transport), None),
        "fell_back": any(report.fallbacks or not report.transport for report in handovers),
        "attempts": len(first.attempts),
    }


def _sequence(one: SequenceRecord, record: HttpRecord, ended_at: float) -> dict[str, Any]:
    return {
        "request_id": one.request_id,
        "outcome": one.outcome or None,
        "error": one.error or None,
        "adapter": _adapter(one) if one.adapter else None,
        "prompt_tokens": one.prompt_tokens,
        "output_tokens": one.output_tokens,
        "speculation": _acceptance(one.acceptance) if one.acceptance else None,
        "cached_tokens": {"device": one.device_cached_tokens, "store": one.store_cached_tokens},
        "first_token_from": one.first_token_from or None,
        "started_seconds": _seconds(one.started_at, record),
        "first_token_seconds": _seconds(one.first_token_at, record),
        "ended_seconds": _seconds(one.ended_at, record),
        "attempts": [_attempt(attempt, record) for attempt in one.attempts],
        "handovers": [_handover(report) for report in one.handovers],
        "phases": [_phase(phase, record) for phase in phases(one, record.started_at, ended_at)],
    }


def _phase(phase: TimePhase, record: HttpRecord) -> dict[str, Any]:
    """Its begin may be 0, that of the request."""
    return {
        "name": phase.name,
        "begin_seconds": round(phase.begin - record.started_at, 6),
        "end_seconds": round(phase.end - record.started_at, 6),
    }


def _acceptance(report: Acceptance) -> dict[str, Any]:
    return {
        "steps": report.steps,
        "proposed_tokens": report.proposed_tokens,
        "accepted_tokens": report.accepted_tokens,
        "acceptance": round(report.accepted_tokens / max(1, report.proposed_tokens), 4),
        "tokens_per_step": round(1 + report.accepted_tokens / max(1, report.steps), 4),
        "switched_off": report.switched_off,
    }


def _adapter(one: SequenceRecord) -> dict[str, Any]:
    return {
        "name": one.adapter,
        "version": one.adapter_version,
        "loads": [_adapter_load(leg, load) for leg, load in one.adapter_loads],
    }


def _adapter_load(leg: str, load: AdapterLoad) -> dict[str, Any]:
    return {"leg": leg, "tier": load.tier, "seconds": round(load.seconds, 6)}


def _attempt(attempt: AttemptRecord, record: HttpRecord) -> dict[str, Any]:
    report = router_pb2.PlacementReport.FromString(attempt.report)
    return {
        "asked_seconds": _seconds(attempt.asked_at, record),
        "placed_seconds": _seconds(attempt.placed_at, record),
        "queue": {
            "seconds": round(attempt.queue_seconds, 6),
            "requests_ahead": report.requests_ahead,
            "used_up_seconds": _rounded(dict(report.used_up_seconds)),
            "prefetches": [_prefetch(one) for one in report.prefetches],
        },
        "tenant": {"weight": report.tenant_weight, "share": round(report.tenant_share, 4)},
        "prefill": attempt.prefill or None,
        "decode": attempt.decode or None,
        "note": report.note or None,
        "handover": _planned(report.handover) if report.HasField("handover") else None,
        "candidates": [_candidate(one) for one in report.candidates],
        "predicted_cached_tokens": report.predicted_cached_tokens,
        "failed_worker": attempt.failed_worker or None,
        "error": attempt.error or None,
    }


def _prefetch(one: router_pb2.AdapterPrefetch) -> dict[str, Any]:
    seconds = round(one.seconds, 6) if one.HasField("seconds") else None
    return {"worker": one.worker_id, "tier": decode_tier(one.tier, AdapterTier.SOURCE), "seconds": seconds}


def _candidate(one: router_pb2.PlacementCandidate) -> dict[str, Any]:
    parts = _rounded(dict(one.seconds))
    return {
        "prefill": one.prefill or None,
        "decode": one.decode,
        "predicted_seconds": round(sum(parts.values()), 6),
        "parts": parts,
    }


def _planned(handover: router_pb2.HandoverChoice) -> dict[str, Any]:
    return {
        "mode": "push" if handover.push else "pull",
        "reason": handover.reason,
        "pull_seconds": round(handover.pull_seconds, 6) or None,
        "push_seconds": round(handover.push_seconds, 6) or None,
    }


def _handover(report: HandoverReport) -> dict[str, Any]:
    return {
        "transport": report.transport or None,
        "mode": ("push" if report.pushed else "pull") if report.transport else "recomputed",
        "bytes": report.bytes,
        "seconds": round(report.seconds, 6),
        "fallbacks": list(report.fallbacks),
        "reason": report.reason or None,
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in sorted(values.items())}


def _seconds(at: float, record: HttpRecord) -> float | None:
    return round(at - record.started_at, 6) if at else None
