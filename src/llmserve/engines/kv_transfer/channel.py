"""The side channel: connections between processes that carry the messages of `protocol`.

A frame is a big-endian length and a message. `open_server` and `open_client` are the only places that open a
socket: transport security and authentication of a channel belong there.
"""

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress

from llmserve.core.errors import PeerGone, TransferError
from llmserve.core.kv_params import split_endpoint
from llmserve.engines.kv_transfer.protocol import MAX_MESSAGE_BYTES, Answer, Request, encode

CONNECT_SECONDS = 3.0
_LENGTH = struct.Struct("!I")


class Channel:
    """One connection, of either end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, message: Request | Answer) -> None:
        """Queues a message; `drain` waits until the other end takes more."""
        body = encode(message)
        self._writer.write(_LENGTH.pack(len(body)) + body)

    async def drain(self) -> None:
        await self._writer.drain()

    async def receive(self) -> bytes:
        """The next message, for `protocol.decode_request` or `decode_answer`. Errors: TransferError for what
        is no frame; ConnectionError at the end of the stream."""
        try:
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if size > MAX_MESSAGE_BYTES:
                raise TransferError(f"side channel: a message of {size} bytes is too long")
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("side channel closed by the peer") from error

    def close(self) -> None:
        """Idempotent; what is queued is still sent."""
        self._writer.close()

    async def aclose(self) -> None:
        """Closes, and waits until the socket is gone."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


async def open_server(host: str, accept: Callable[[Channel], None]) -> tuple[asyncio.Server, str]:
    """Listens on a free port. Returns the server and its host:port. Errors: TransferError."""
    try:
        server = await asyncio.start_server(lambda *streams: accept(Channel(*streams)), host, 0)
    except OSError as error:
        raise TransferError(f"side channel: cannot listen on {host}: {error}") from error
    port: int = server.sockets[0].getsockname()[1]
    return server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def open_client(endpoint: str) -> Channel:
    """Connects to host:port. Errors: TransferError; PeerGone when nobody listens there."""
    host, port = split_endpoint(endpoint)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return Channel(*await asyncio.open_connection(host, port))
    except ConnectionRefusedError as error:
        raise PeerGone(f"cannot connect to {endpoint}: {error!r}") from error
    except (OSError, TimeoutError) as error:
        raise TransferError(f"cannot connect to {endpoint}: {error!r}") from error
