"""A record as a row of the list of requests. Pure."""

import time
from datetime import UTC, datetime
from typing import Any

from llmserve.apiserver.explain.record import HttpRecord, SequenceRecord


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
        "first_token_seconds": _since(first.first_token_at, record),
        "prompt_tokens": sum(one.prompt_tokens for one in record.sequences),
        "cached_tokens": sum(one.device_cached_tokens + one.store_cached_tokens for one in record.sequences),
        "output_tokens": sum(one.output_tokens for one in record.sequences),
        "prefill": attempt.prefill or None if attempt else None,
        "decode": attempt.decode or None if attempt else None,
        "transport": next((report.transport for report in handovers if report.transport), None),
        "fell_back": any(report.fallbacks or not report.transport for report in handovers),
        "attempts": len(first.attempts),
    }


def _since(at: float, record: HttpRecord) -> float | None:
    return round(at - record.started_at, 6) if at else None
