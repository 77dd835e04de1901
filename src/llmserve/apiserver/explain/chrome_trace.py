"""A request as a trace in Chrome's JSON format, which Perfetto and chrome://tracing open. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

_MICROSECONDS = 1e6
_PROCESS = 1
_HTTP_TRACK = 1  # Perfetto takes 0 for the idle thread

_Record = Mapping[str, Any]


def chrome_trace(record: _Record) -> dict[str, Any]:
    """record: as view.view shows it. A track for HTTP and one for each sequence; times are since the request
    came."""
    return {
        "displayTimeUnit": "ms",
        "traceEvents": list(_events(record)),
        "otherData": {name: record[name] for name in ("request_id", "tenant", "apiserver", "came_at")},
    }


def _events(record: _Record) -> Iterator[dict[str, Any]]:
    yield _named("process_name", _HTTP_TRACK, f"request {record['request_id']}")
    yield _named("thread_name", _HTTP_TRACK, "HTTP")
    facts = {name: record[name] for name in ("status", "model", "error")}
    yield _span(f"POST {record['path']}", _HTTP_TRACK, 0.0, record["seconds"], facts)
    for track, sequence in enumerate(record["sequences"], _HTTP_TRACK + 1):
        yield _named("thread_name", track, sequence["request_id"])
        for phase in sequence["phases"]:
            begin, end = phase["begin_seconds"], phase["end_seconds"]
            yield _span(phase["name"], track, begin, end, _facts(phase["name"], sequence))


def _facts(phase: str, sequence: _Record) -> dict[str, Any]:
    attempt = sequence["attempts"][-1] if sequence["attempts"] else {}
    match phase:
        case "queue":
            return dict(attempt["queue"]) if attempt else {}
        case "prefill":
            cached = {f"cached_{where}": tokens for where, tokens in sequence["cached_tokens"].items()}
            return {"worker": attempt["prefill"], "prompt_tokens": sequence["prompt_tokens"], **cached}
        case "hand-over":
            return dict(sequence["handovers"][-1]) if sequence["handovers"] else {}
        case "decode":
            return {"worker": attempt["decode"], "output_tokens": sequence["output_tokens"]}
    return {}


def _span(name: str, track: int, begin: float, end: float, facts: Mapping[str, Any]) -> dict[str, Any]:
    """begin, end: seconds. Times are whole microseconds: with fractions, a span could begin a little before
    the one ahead of it had ended, and Perfetto drops such spans."""
    start, stop = round(begin * _MICROSECONDS), round(end * _MICROSECONDS)
    return {
        "ph": "X",
        "name": name,
        "cat": "request",
        "pid": _PROCESS,
        "tid": track,
        "ts": start,
        "dur": stop - start,
        "args": dict(facts),
    }


def _named(what: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": track, "args": {"name": name}}
