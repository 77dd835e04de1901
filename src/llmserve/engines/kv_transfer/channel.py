"""The side channel: connections between processes that carry the messages of `protocol`.

A frame is a big-endian length and a message. `listen` and `open_client` are the only places that open a
socket. Before its first message, each end proves that it is a worker of this cluster
(rpc/wires/handshake.py), so what travels here can be trusted: the descriptions with which transports connect,
and who may fetch from whom.
`release_lease`, `query_status` and `set_peers` are for processes that move no KV: a worker's front. Engines
keep their connections (`peers`).
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from llmserve.core.addresses import join_address
from llmserve.core.errors import DeadlineExceeded, NotAuthenticated, PeerGone, TransferError
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
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.wires.handshake import HANDSHAKE_SECONDS, Purpose, prove_stream

CONNECT_SECONDS = 3.0
_ENGINES = (CallerRole.WORKER,)
_UNKNOWN_RETRY_SECONDS = 0.01
_BACKLOG = 128
_LENGTH = struct.Struct("!I")


class Channel:
    """One connection, of either end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, message: Request | Answer) -> None:
        """Queues a message; `drain` waits until the other end takes more."""
        body = encode(message)
        self._writer.write(_LENGTH.pack(len(body)) + body)

    async def prove(self, credentials: Credentials, *, server: bool) -> None:
        """Shakes hands, before all else. Errors: TransferError; OSError when the peer leaves."""
        try:
            await prove_stream(
                self._reader, self._writer, credentials, Purpose.CHANNEL, _ENGINES, server=server
            )
        except NotAuthenticated as error:
            raise TransferError(f"side channel: the peer is refused: {error.message}") from error
        except EOFError as error:
            raise ConnectionResetError("side channel closed by the peer during the handshake") from error

    async def drain(self) -> None:
        await self._writer.drain()

    async def receive(self) -> bytes:
        """Returns the next message, for `protocol.decode_request` or `decode_answer`. Errors: TransferError
        for what is no frame; ConnectionError at the end of the stream."""
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


def listen(host: str) -> tuple[socket.socket, str]:
    """Listens on a free port. Returns the socket and its host:port. Errors: TransferError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise TransferError(f"side channel: cannot listen on {host}: {error}") from error
    listener.setblocking(False)
    port: int = listener.getsockname()[1]
    return listener, join_address(host, port)


async def open_accepted(connection: socket.socket, credentials: Credentials) -> Channel:
    """Returns the channel over a connection that was accepted, after the handshake. Errors: TransferError;
    OSError when the peer leaves."""
    loop, tls = asyncio.get_running_loop(), dict[str, Any]()
    if credentials.certificates is not None:
        context = credentials.certificates.current().server
        tls = {"ssl": context, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, **tls)
    channel = Channel(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
    try:
        await channel.prove(credentials, server=True)
    except BaseException:
        channel.close()
        raise
    return channel


async def open_client(endpoint: str, credentials: Credentials) -> Channel:
    """Connects to host:port. Errors: TransferError; PeerGone when nobody listens there."""
    host, port = split_endpoint(endpoint)
    certificates = credentials.certificates
    context = certificates.current().client if certificates is not None else None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            channel = Channel(*await asyncio.open_connection(host, port, ssl=context))
            try:
                await channel.prove(credentials, server=False)
            except BaseException:
                channel.close()
                raise
            return channel
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


async def release_lease(
    params: PullParams, timeout: float, credentials: Credentials = NO_CREDENTIALS
) -> bool:
    """Gives back the blocks of a hand-over that will not happen, on every rank. False: some lease had ended
    before. A lease that its owner has not granted yet is waited for.
    Errors: TransferError, DeadlineExceeded (seconds)."""
    async with _deadline(timeout, "release"):
        ends = (_release(endpoint, params, credentials) for endpoint in params.endpoints)
        answers = await asyncio.gather(*ends)
    return all(answer is LeaseAnswer.VALID for answer in answers)


async def query_status(
    endpoint: str, timeout: float, credentials: Credentials = NO_CREDENTIALS
) -> HandoverStatus:
    """Errors: TransferError, DeadlineExceeded."""
    async with _deadline(timeout, "status"), _connection(endpoint, credentials) as channel:
        return await _ask(channel, AskStatus(), HandoverStatus)


async def set_peers(
    endpoint: str, addresses: Sequence[PeerAddress], timeout: float, credentials: Credentials = NO_CREDENTIALS
) -> None:
    """Names to this worker's own rank the peers it may fetch from; replaces those named before.
    Errors: TransferError, DeadlineExceeded."""
    async with _deadline(timeout, "set_peers"), _connection(endpoint, credentials) as channel:
        await _ask(channel, SetPeers(tuple(addresses)), Done)


async def _release(endpoint: str, params: PullParams, credentials: Credentials) -> LeaseAnswer:
    message = ReleaseLease(params.lease_id, params.epoch)
    async with _connection(endpoint, credentials) as channel:
        return await answer_about_lease(lambda: _ask(channel, message, LeaseIs), float("inf"))


async def _ask(channel: Channel, request: Request, kind: type[A]) -> A:
    try:
        channel.send(request)
        return expect(decode_answer(await channel.receive()), kind)
    except OSError as error:
        raise TransferError(f"side channel: {error!r}") from error


@asynccontextmanager
async def _connection(endpoint: str, credentials: Credentials) -> AsyncIterator[Channel]:
    channel = await open_client(endpoint, credentials)
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
