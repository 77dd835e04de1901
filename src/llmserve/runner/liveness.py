"""Asks a process whether it is alive: gRPC's standard health service, or an apiserver's GET /live.

Any answer will do: what does not serve now may be draining, or a router that stands by.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.config.plan import ProcessSpec
from llmserve.core.errors import Unavailable
from llmserve.rpc.client import open_channel

# For one question, which is then asked again. Longer than a process may be silent that does nothing.
_QUESTION_SECONDS = 60.0

Ask = Callable[[], Awaitable[None]]


@asynccontextmanager
async def questions(spec: ProcessSpec) -> AsyncIterator[Ask | None]:
    """What to call for one answer of the process; it fails, or takes long, when none comes. None: it serves
    nothing."""
    if own_http := spec.direct or spec.http:
        address = own_http
        yield lambda: _get_live(address)
    elif spec.listen:
        async with open_channel(spec.listen) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            yield lambda: _check(stub)
    else:
        yield None


async def _check(stub: health_pb2_grpc.HealthStub) -> None:
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=_QUESTION_SECONDS)


async def _get_live(address: str) -> None:
    """Errors: OSError, TimeoutError, Unavailable."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(_QUESTION_SECONDS):
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(f"GET /live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            if not await reader.readline():
                raise Unavailable(f"{address} closed the connection without an answer")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
