"""The record of a request for people. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from llmserve.cli.kv_page import size
from llmserve.core.logs import printable

_Part = Mapping[str, Any]


def lines(record: _Part) -> Iterator[str]:
    """record: as `GET /v1/requests/{id}/explain` answers. Its errors may repeat what a client wrote."""
    return (printable(line).replace("\n", " ") for line in _lines(record))


def _lines(record: _Part) -> Iterator[str]:
    yield f"{record['request_id']}  {' '.join(record['response_ids'])}".rstrip()
    whose = f"tenant {record['tenant']}, at {record['apiserver']}"
    yield f"  {record['path']} of {whose}, came {record['came_at']}"
    yield f"  {_ending(record)} after {_time(record['seconds'])}"
    if record["trace_id"]:
        yield f"  trace {record['trace_id']}"
    if record["error"]:
        yield f"  error: {record['error']}"
    for sequence in record["sequences"]:
        yield ""
        yield from _sequence(sequence)


def _ending(record: _Part) -> str:
    return "runs" if record["running"] else f"ended with HTTP {record['status'] or '(client gone)'}"


def _sequence(one: _Part) -> Iterator[str]:
    yield f"  {one['request_id']}: {_outcome(one)}"
    cached = one["cached_tokens"]
    yield (
        f"    {one['prompt_tokens']} prompt tokens, cached {cached['device']} on the device and "
        f"{cached['store']} in the KV store; {one['output_tokens']} tokens generated"
    )
    if one["first_token_seconds"] is not None:
        yield f"    first token after {_time(one['first_token_seconds'])}, from {one['first_token_from']}"
    for number, attempt in enumerate(one["attempts"], 1):
        yield from _attempt(number, attempt)
    for handover in one["handovers"]:
        yield from _handover(handover)
    if one["error"]:
        yield f"    error: {one['error']}"


def _outcome(one: _Part) -> str:
    return f"{one['outcome']} after {_time(one['ended_seconds'])}" if one["outcome"] else "runs"


def _attempt(number: int, attempt: _Part) -> Iterator[str]:
    if attempt["placed_seconds"] is None:
        yield f"    attempt {number}: asked at {_time(attempt['asked_seconds'])}, not placed"
        return
    workers = " -> ".join(filter(None, (attempt["prefill"], attempt["decode"])))
    yield f"    attempt {number}: on {workers}, placed at {_time(attempt['placed_seconds'])}"
    if attempt["note"]:
        yield f"      {attempt['decode']} does it all: {attempt['note']}"
    yield f"      {_queue(attempt['queue'])}"
    tenant = attempt["tenant"]
    yield f"      tenant: weight {tenant['weight']:g}, {tenant['share']:.0%} of the turns"
    yield f"      cached, as predicted: {attempt['predicted_cached_tokens']} tokens"
    yield from _candidates(attempt["candidates"])
    if attempt["error"]:
        yield f"      failed on {attempt['failed_worker']}: {attempt['error']}"


def _queue(queue: _Part) -> str:
    text = f"queue: {_time(queue['seconds'])}, {queue['requests_ahead']} waited already"
    if used_up := queue["used_up_seconds"]:
        held = ", ".join(f"{name} ({_time(seconds)})" for name, seconds in used_up.items())
        text += f"; used up meanwhile: {held}"
    return text


def _candidates(candidates: list[_Part]) -> Iterator[str]:
    for one in candidates:
        workers = " -> ".join(filter(None, (one["prefill"], one["decode"])))
        parts = ", ".join(f"{name} {_time(seconds)}" for name, seconds in one["parts"].items() if seconds)
        yield f"      candidate {workers}: predicted {_time(one['predicted_seconds'])} ({parts})"


def _handover(one: _Part) -> Iterator[str]:
    if one["transport"]:
        moved = f"{size(one['bytes'])} in {_time(one['seconds'])}"
        yield f"    KV: {moved} over {one['transport']}, {one['mode']}"
    else:
        yield f"    KV: recomputed: {one['reason']}"
    for fallback in one["fallbacks"]:
        yield f"      fell back: {fallback}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
