"""One way to call: channels, their settings, the metadata of a call, and the pauses between tries.

Messages: the largest is a prompt (4 bytes a token at most) with its block hashes, or the prompt logprobs of
one. 64 MiB holds a million-token prompt and refuses nonsense. KV bytes never pass here.

Keepalive: a peer that vanished without a FIN, or was stopped, is noticed within 10 s, on idle connections
too. gRPC's own threads answer pings, however busy the process is. A ping every 5 s costs nothing measurable.
"""

import asyncio
import random

import grpc.aio

from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.wires.channel import ShowingChannel, TlsChannel

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
KEEPALIVE_SECONDS = 5
KEEPALIVE_TIMEOUT_SECONDS = 5
TRACEPARENT = "traceparent"

SHARED_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    # gRPC 1.85 uses this one for the answer to a keepalive ping; by default it waits for a minute.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *SHARED_OPTIONS,
    # Each channel has its own connection: streams of different links do not share a window.
    ("grpc.use_local_subchannel_pool", 1),
    # After a peer's restart, reconnect in tenths of a second rather than in gRPC's default 20.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
CONNECT_SECONDS = 1.0
"""Each try to connect gets this time: a busy peer may take longer than a tenth."""


def open_channel(
    address: str,
    credentials: Credentials = NO_CREDENTIALS,
    callee: CallerRole | None = None,
    connect_seconds: float = CONNECT_SECONDS,
) -> grpc.aio.Channel:
    """Returns a channel to HOST:PORT that is not yet connected, and shows the credentials with every call.
    callee: whom to expect there, which only certificates prove. The caller closes it."""
    certificates, shown = credentials.certificates, credentials.metadata()
    # gRPC's name for the time that each try to connect gets.
    options = (*_CHANNEL_OPTIONS, ("grpc.min_reconnect_backoff_ms", int(connect_seconds * 1000)))
    if certificates is not None:
        assert callee is not None, "whose certificate is expected"
        return TlsChannel(address, certificates, callee, options, shown)
    channel = grpc.aio.insecure_channel(address, options=options)
    return ShowingChannel(channel, shown) if shown else channel


def trace_metadata(traceparent: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata (W3C trace context) of a call for one request; empty when it is not traced.

    A session between apiserver, router and workers is one call for many requests. There, each message that
    begins something carries its own traceparent."""
    return ((TRACEPARENT, traceparent),) if traceparent else ()


class Backoff:
    """Exponential backoff with jitter, so that peers do not return in step. next() gives the seconds to wait
    before try 1, 2, ...; reset() after a success."""

    def __init__(
        self,
        initial_seconds: float = 0.1,
        max_seconds: float = 2.0,
        factor: float = 2.0,
        rng: random.Random | None = None,
    ) -> None:
        self._initial, self._max, self._factor = initial_seconds, max_seconds, factor
        self._rng = rng or random.Random()
        self._current = initial_seconds

    def next(self) -> float:
        wait = self._current * (0.5 + 0.5 * self._rng.random())
        self._current = min(self._max, self._current * self._factor)
        return wait

    async def pause(self) -> None:
        """Waits before the next try. Ends a task that was cancelled, also when the try has answered that with
        an error of its own: a call of gRPC that fails at the same moment does so."""
        self.check()
        await asyncio.sleep(self.next())

    def check(self) -> None:
        """Does what `pause` does, without waiting. Errors: CancelledError."""
        task = asyncio.current_task()
        if task and task.cancelling():
            raise asyncio.CancelledError

    def reset(self) -> None:
        self._current = self._initial
