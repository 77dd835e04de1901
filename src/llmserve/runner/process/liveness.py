"""Asks a process whether it is alive, and watches that it answers.

The question is gRPC's standard health check, or GET /live of an apiserver. Any answer will do: a process that
does not serve now may be draining, or be a router that stands by.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.config.plan import ProcessSpec
from llmserve.core.addresses import split_address
from llmserve.core.errors import Unavailable
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials

# Deadline of one question, which is then asked again. A process that does nothing is given up before it.
_QUESTION_SECONDS = 60.0
_LIVE_BYTES = 2**16

Ask = Callable[[], Awaitable[None]]


@asynccontextmanager
async def questions(
    spec: ProcessSpec, credentials: Credentials = NO_CREDENTIALS
) -> AsyncIterator[Ask | None]:
    """Yields a function that returns when the process has answered, and fails or takes long when it does not.
    None: the process serves nothing."""
    if address := spec.direct or spec.http:
        yield lambda: _get_live(address, spec.https)
    elif spec.listen:
        callee = CallerRole.of_process(spec.role)
        async with open_channel(spec.listen, credentials, callee) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            yield lambda: _check(stub)
    else:
        yield None


async def _check(stub: health_pb2_grpc.HealthStub) -> None:
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=_QUESTION_SECONDS)


async def _get_live(address: str, https: bool) -> None:
    """Errors: OSError, TimeoutError, Unavailable."""
    async with asyncio.timeout(_QUESTION_SECONDS):
        if not await http_get(address, "/live", _LIVE_BYTES, any_certificate() if https else None):
            raise Unavailable(f"{address} closed the connection without an answer")


def any_certificate() -> ssl.SSLContext:
    """Returns a context for processes of this machine, whose addresses no certificate has to name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def http_get(address: str, path: str, most_bytes: int, context: ssl.SSLContext | None = None) -> bytes:
    """Returns the head and body of the answer, up to the end of the connection. The caller sets the deadline.
    context: for TLS. Errors: OSError; Unavailable when the answer is larger than most_bytes."""
    host, port = split_address(address)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        parts = bytearray()
        while part := await reader.read(2**16):
            parts += part
            if len(parts) > most_bytes:
                raise Unavailable(f"its page is larger than {most_bytes} bytes")
        return bytes(parts)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
