"""The side channel: connections between processes that carry the messages of `protocol`.

A frame is a big-endian length and a message. `open_server` and `open_client` are the only places that open a
socket: transport security and authentication of a channel belong there. `release_lease`, `query_status` and
`set_peers` are for processes that move no KV: a worker's front. Engines keep their connections (`peers`).
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from llmserve.core.errors import DeadlineExceeded, PeerGone, TransferError
from llmserve.core.kv_params import PeerAddress, PullParams, split_endpoint
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer.protocol import (
    MAX_MESSAGE_BYTES,
    A,
    Answer,
    AskStatus,
    Done,
    HandoverStatus,
    LeaseIs,
    ReleaseLease,
    Request,
    SetPeers,
    decode_answer,
    encode,
    expect,
)

CONNECT_SECONDS = 3.0
_UNKNOWN_RETRY_SECONDS = 0.01
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


async def answer_about_lease(ask: Callable[[], Awaitable[LeaseIs]], seconds: float) -> LeaseAnswer:
    """Asks again for `seconds` while the owner knows nothing of the lease: who reads can be here before the
    owner's engine has granted it."""
    give_up = asyncio.get_running_loop().time() + seconds
    while (answer := (await ask()).lease) is LeaseAnswer.UNKNOWN:
        if asyncio.get_running_loop().time() > give_up:
            break
        await asyncio.sleep(_UNKNOWN_RETRY_SECONDS)
    return answer


# -- from a worker's front


async def release_lease(params: PullParams, timeout: float) -> bool:
    """Gives back the blocks of a hand-over that will not happen, on every rank. False: some lease had ended
    before. A lease that its owner has not granted yet is waited for.
    Errors: TransferError, DeadlineExceeded (seconds)."""
    async with _deadline(timeout, "release"):
        answers = await asyncio.gather(*(_release(endpoint, params) for endpoint in params.endpoints))
    return all(answer is LeaseAnswer.VALID for answer in answers)


async def query_status(endpoint: str, timeout: float) -> HandoverStatus:
    """Errors: TransferError, DeadlineExceeded."""
    async with _deadline(timeout, "status"), _connection(endpoint) as channel:
        return await _ask(channel, AskStatus(), HandoverStatus)


async def set_peers(endpoint: str, addresses: Sequence[PeerAddress], timeout: float) -> None:
    """Names to this worker's own rank the peers it may fetch from; replaces those named before.
    Errors: TransferError, DeadlineExceeded."""
    async with _deadline(timeout, "set_peers"), _connection(endpoint) as channel:
        await _ask(channel, SetPeers(tuple(addresses)), Done)


async def _release(endpoint: str, params: PullParams) -> LeaseAnswer:
    message = ReleaseLease(params.lease_id, params.epoch)
    async with _connection(endpoint) as channel:
        return await answer_about_lease(lambda: _ask(channel, message, LeaseIs), float("inf"))


async def _ask(channel: Channel, request: Request, kind: type[A]) -> A:
    try:
        channel.send(request)
        return expect(decode_answer(await channel.receive()), kind)
    except OSError as error:
        raise TransferError(f"side channel: {error!r}") from error


@asynccontextmanager
async def _connection(endpoint: str) -> AsyncIterator[Channel]:
    channel = await open_client(endpoint)
    try:
        yield channel
    finally:
        await channel.aclose()


@asynccontextmanager
async def _deadline(timeout: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"side channel: no answer to {what} within {timeout:g} s") from error
