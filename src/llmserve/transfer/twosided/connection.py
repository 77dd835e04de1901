"""A connection of two processes, and the carrier that moves bytes over it."""

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from llmserve.core.errors import TransferError
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.wires.handshake import Purpose, prove, wrapped
from llmserve.transfer.base import Memory, Region, Spans

_MOVERS = (CallerRole.WORKER, CallerRole.KVMANAGER)


class Carrier(Protocol):
    """Moves the bytes of one connection, on one thread. Spans are those of this end and have been checked;
    both ends name the same number of bytes. Errors: TransferError, OSError; the carrier is then dead and no
    longer touches this end's memory."""

    def send(self, spans: Spans) -> None:
        """Starts sending. Bytes may still be unsent when this returns."""

    def settle(self) -> None:
        """The other end has everything that was sent: it said so, or it sent a new request."""

    def receive(self, spans: Spans, ask: Callable[[], None], confirm: Callable[[], None]) -> None:
        """Calls `ask`, which makes the other end send, and `confirm`, which takes its answer from the socket
        and raises if that is a refusal. Each is called once, unless the one before fails."""

    def cut(self) -> None:
        """Ends a running call with an error. It may be called from any thread and any number of times, after
        the socket was shut down. When this returns nothing is sent or received any more."""

    def close(self) -> None:
        """Cuts and frees everything, after the last use. Idempotent."""


class CarrierFactory(Protocol):
    """Makes the carriers of one transport. Errors of `open`: TransferError, OSError."""

    name: str  # the transport's name
    connections: int  # the most connections to one peer
    same_socket: bool  # whether the bytes go over the socket of the requests
    answer_seconds: float | None  # the time in which a peer must answer a request; None: no limit

    def reaches(self, memory: Memory) -> bool:
        """Says whether carriers move bytes of this memory."""

    def open(self, sock: socket.socket, regions: Sequence[Region], rank: int) -> Carrier:
        """Opens a carrier for an accepted connection. rank: 0 at the end that connected, 1 at the other. Both
        ends call this at the same time and may exchange messages over the socket, which has a timeout."""

    def close(self) -> None:
        """Is called after the last carrier was closed. Idempotent."""


class PeerConnection:
    """A socket with its carrier. It belongs to one thread; only `hang_up` is called from others."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._carrier: Carrier | None = None
        self._lock = threading.Lock()
        self._hung_up = False

    @property
    def carrier(self) -> Carrier:
        assert self._carrier is not None, "opened"
        return self._carrier

    def secure(self, credentials: Credentials, *, server: bool) -> None:
        """Shakes hands, before all else. server: this end was connected to. Errors: NotAuthenticated,
        OSError; TransferError when it was hung up."""
        sock = wrapped(self.socket, credentials, server=server)
        with self._lock:
            self.socket = sock
            if self._hung_up:
                raise TransferError("hung up")
        prove(sock, credentials, Purpose.TRANSFER, _MOVERS, server=server)

    def open(self, carriers: CarrierFactory, regions: Sequence[Region], rank: int) -> None:
        """Errors: TransferError, OSError."""
        carrier = carriers.open(self.socket, regions, rank)
        with self._lock:
            self._carrier = carrier
            if self._hung_up:
                raise TransferError("hung up")

    def hang_up(self) -> None:
        """Wakes the thread of the connection from any wait."""
        with self._lock:
            self._hung_up = True
            with contextlib.suppress(OSError):
                # Not SSLSocket.shutdown: until it has shut down, another thread may send without TLS.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
            if self._carrier is not None:
                self._carrier.cut()

    def close(self) -> None:
        with self._lock:
            carrier, self._carrier = self._carrier, None
        self.socket.close()
        if carrier is not None:
            carrier.close()
