"""What `llmserve adapters` shows: a table of all, everything about one, and how one comes to its workers."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.text import Text

from llmserve.cli.kv.page import size
from llmserve.cli.screen import table
from llmserve.core.adapters import AdapterTier, short_version
from llmserve.core.errors import LLMServeError
from llmserve.rpc.adapter_calls import AdapterClient, adapter_row
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_POLL_SECONDS = 0.5

_Row = Mapping[str, Any]  # of rpc/adapter_calls.py: adapter_row


def adapters_page(rows: Sequence[_Row]) -> RenderableType:
    if not rows:
        return Text("no adapter is loaded")
    shown = table("NAME", "VERSION", "STATE", "RANK", "SIZE", "WORKERS", "RUNNING", "SOURCE")
    for row in rows:
        shown.add_row(*map(escape, _cells(row)))
    return shown


def _cells(row: _Row) -> Iterator[str]:
    yield row["name"]
    yield version(row)
    yield f"{row['state']}{', pinned' if row['pinned'] else ''}"
    yield str(row["rank"] or "-")
    yield size(row["size_bytes"]) if row["size_bytes"] else "-"
    yield places(row)
    yield str(row["running_requests"])
    yield row["error"] or row["source"]


def places(row: _Row) -> str:
    counts = Counter(place["tier"] for place in row["workers"])
    return ", ".join(f"{counts[tier]} {tier}" for tier in AdapterTier if counts[tier]) or "-"


def version(row: _Row) -> str:
    return short_version(row["version"] or "") or "-"


def adapter_lines(rows: Sequence[_Row]) -> Iterator[str]:
    """rows: the versions of one name."""
    for row in rows:
        pinned = ", pinned" if row["pinned"] else ""
        yield f"{row['name']}: {row['state']}{pinned}, an adapter of {row['model']}"
        yield f"  version {row['version'] or 'not known yet'}"
        yield f"  source {row['source']}"
        if row["rank"]:
            yield f"  rank {row['rank']}, {size(row['size_bytes'] or 0)}"
        yield f"  {row['running_requests']} requests have it"
        if row["error"]:
            yield f"  {row['error']}"
        for place in row["workers"]:
            yield f"  {place['worker']}: {_place(place)}"


def _place(place: _Row) -> str:
    if place["error"]:
        return str(place["error"])
    text = f"{place['tier']}, {place['running_requests']} requests"
    return f"{text}, last loaded in {place['load_seconds']:.3f} s" if place["load_seconds"] else text


async def showing_progress(
    router: AdapterClient, name: str, call: Coroutine[None, None, router_pb2.AdapterStatus]
) -> router_pb2.AdapterStatus:
    """Waits for a call about an adapter. Its state is shown on standard error meanwhile, where that is a
    terminal. Errors: those of the call."""
    console = Console(stderr=True)
    working = asyncio.create_task(call, name=f"adapter {name}")
    with console.status(f"{name} ...") as shown:
        while not working.done():
            with suppress(LLMServeError):  # the call itself says what is wrong
                newest = [one for one in await router.list() if one.adapter.name == name][-1:]
                for status in newest:
                    shown.update(progress_of(status))
            await asyncio.wait([working], timeout=_POLL_SECONDS)
    return await working


def progress_of(status: router_pb2.AdapterStatus) -> str:
    row = adapter_row(status)
    there = sum(place["tier"] != AdapterTier.SOURCE for place in row["workers"])
    text = f"{row['name']}: {row['state']}, on the hosts of {there} workers"
    return f"{text}; {row['error']}" if row["error"] else text
