"""`llmserve explain`: shows why a request was served as it was."""

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmserve.apiserver.explain.chrome_trace import chrome_trace
from llmserve.cli.cluster import add_cluster, find_cluster
from llmserve.cli.command import EXIT_OK, Command, add_json
from llmserve.cli.kv.page import size
from llmserve.core.adapters import AdapterTier, short_version
from llmserve.core.logs import printable
from llmserve.rpc.leader import explain_request

_TIERS = {
    AdapterTier.DEVICE: "it was loaded",
    AdapterTier.DRAM: "loaded from shared memory",
    AdapterTier.DISK: "loaded from the disk",
    AdapterTier.SOURCE: "fetched from its source",
}
_PLACES = {AdapterTier.DISK: "the disk", AdapterTier.SOURCE: "its source"}
_ABOUT = """\
Shows what the cluster that runs here (or of -f, --run-dir) remembers of a request: how long it waited, and
for what; its tenant's share; where it ran, and what else could have been; what was cached; how its KV moved,
and what failed on the way. ID is what the response has as its id (chatcmpl-...), or the header x-request-id,
which refusals have too. Each apiserver remembers its latest requests (observability.explain_requests).
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the id of the response, or x-request-id")
    parser.add_argument("--trace", metavar="FILE", help="write a trace that ui.perfetto.dev opens")
    add_cluster(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    routers = find_cluster(options).routers
    record = json.loads(asyncio.run(explain_request(routers, options.id)))
    if options.trace:
        Path(options.trace).write_text(json.dumps(chrome_trace(record)))
    print(json.dumps(record, indent=2) if options.json else "\n".join(lines(record)))
    return EXIT_OK


COMMAND = Command("explain", "why a request was served as it was", _ABOUT, _configure, _run)


_Record = Mapping[str, Any]


def lines(record: _Record) -> Iterator[str]:
    """record: the answer of `GET /v1/requests/{id}/explain`. Its errors may repeat what a client wrote."""
    return (printable(line).replace("\n", " ") for line in _lines(record))


def _lines(record: _Record) -> Iterator[str]:
    yield f"{record['request_id']}  {' '.join(record['response_ids'])}".rstrip()
    whose = f"tenant {record['tenant']}, at {record['apiserver']}"
    model = f" to model {record['model']}" if record["model"] else ""
    yield f"  {record['path']}{model} of {whose}, came {record['came_at']}"
    yield f"  {_ending(record)} after {_time(record['seconds'])}"
    if record["trace_id"]:
        yield f"  trace {record['trace_id']}"
    if record["error"]:
        yield f"  error: {record['error']}"
    for sequence in record["sequences"]:
        yield ""
        yield from _sequence(sequence)


def _ending(record: _Record) -> str:
    return "runs" if record["running"] else f"ended with HTTP {record['status'] or '(client gone)'}"


def _sequence(one: _Record) -> Iterator[str]:
    yield f"  {one['request_id']}: {_outcome(one)}"
    if adapter := one["adapter"]:
        yield from _adapter(adapter)
    cached = one["cached_tokens"]
    yield (
        f"    {one['prompt_tokens']} prompt tokens, cached {cached['device']} on the device and "
        f"{cached['store']} in the KV store; {one['output_tokens']} tokens generated"
    )
    if one["first_token_seconds"] is not None:
        yield f"    first token after {_time(one['first_token_seconds'])}, from {one['first_token_from']}"
    if speculation := one["speculation"]:
        yield f"    speculation: {_speculation(speculation)}"
    for number, attempt in enumerate(one["attempts"], 1):
        yield from _attempt(number, attempt)
    for handover in one["handovers"]:
        yield from _handover(handover)
    if one["error"]:
        yield f"    error: {one['error']}"


def _speculation(one: _Record) -> str:
    if not one["proposed_tokens"]:
        why = "the engine measured that proposals do not pay" if one["switched_off"] else "nothing to propose"
        return f"none: {why}"
    since = "; switched off since, because it does not pay" if one["switched_off"] else ""
    return (
        f"{one['accepted_tokens']} of {one['proposed_tokens']} proposed tokens accepted "
        f"({one['acceptance']:.0%}), {one['tokens_per_step']:.2f} a step{since}"
    )


def _adapter(adapter: _Record) -> Iterator[str]:
    yield f"    adapter {adapter['name']}, version {short_version(adapter['version'])}"
    for load in adapter["loads"]:
        waited = f"waited {_time(load['seconds'])} for it" if load["seconds"] else "did not wait"
        yield f"      {load['leg']}: {_TIERS[load['tier']]}, {waited}"


def _outcome(one: _Record) -> str:
    return f"{one['outcome']} after {_time(one['ended_seconds'])}" if one["outcome"] else "runs"


def _attempt(number: int, attempt: _Record) -> Iterator[str]:
    if attempt["placed_seconds"] is None:
        yield f"    attempt {number}: asked at {_time(attempt['asked_seconds'])}, not placed"
        return
    workers = " -> ".join(filter(None, (attempt["prefill"], attempt["decode"])))
    yield f"    attempt {number}: on {workers}, placed at {_time(attempt['placed_seconds'])}"
    if attempt["note"]:
        yield f"      {attempt['decode']} does it all: {attempt['note']}"
    yield f"      {_queue(attempt['queue'])}"
    yield from map(_prefetch, attempt["queue"]["prefetches"])
    tenant = attempt["tenant"]
    yield f"      tenant: weight {tenant['weight']:g}, {tenant['share']:.0%} of the turns"
    yield f"      cached, as predicted: {attempt['predicted_cached_tokens']} tokens"
    yield from _candidates(attempt["candidates"])
    if planned := attempt["handover"]:
        yield f"      hand-over: {_planned(planned)}"
    if attempt["error"]:
        yield f"      failed on {attempt['failed_worker']}: {attempt['error']}"


def _queue(queue: _Record) -> str:
    text = f"queue: {_time(queue['seconds'])}, {queue['requests_ahead']} waited already"
    if used_up := queue["used_up_seconds"]:
        held = ", ".join(f"{name} ({_time(seconds)})" for name, seconds in used_up.items())
        text += f"; used up meanwhile: {held}"
    return text


def _prefetch(one: _Record) -> str:
    seconds, place = one["seconds"], _PLACES[one["tier"]]
    what = "under way" if seconds is None else f"took {_time(seconds)}"
    return f"      its adapter from {place} to the shared memory of {one['worker']} meanwhile: {what}"


def _planned(handover: _Record) -> str:
    known = [(way, handover[f"{way}_seconds"]) for way in ("pull", "push")]
    figures = ", ".join(f"{way} {_time(seconds)}" for way, seconds in known if seconds is not None)
    text = f"{handover['mode']}, because {handover['reason']}"
    return f"{text} ({figures})" if figures else text


def _candidates(candidates: list[_Record]) -> Iterator[str]:
    for one in candidates:
        workers = " -> ".join(filter(None, (one["prefill"], one["decode"])))
        parts = ", ".join(f"{name} {_time(seconds)}" for name, seconds in one["parts"].items() if seconds)
        yield f"      candidate {workers}: predicted {_time(one['predicted_seconds'])} ({parts})"


def _handover(one: _Record) -> Iterator[str]:
    if one["transport"]:
        moved = f"{size(one['bytes'])} in {_time(one['seconds'])}"
        yield f"    KV: {moved} over {one['transport']}, {one['mode']}"
    else:
        yield f"    KV: recomputed: {one['reason']}"
    for fallback in one["fallbacks"]:
        yield f"      fell back: {fallback}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
