"""Shows how an adapter comes to its workers, while a command waits for it."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress

from rich.console import Console

from llmserve.core.adapters import AdapterTier
from llmserve.core.errors import LLMServeError
from llmserve.rpc.adapter_calls import AdapterClient, adapter_row
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_POLL_SECONDS = 0.5


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
