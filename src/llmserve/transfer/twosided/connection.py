"""A connection of two processes, and the carrier that moves bytes over it."""

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Region, Spans


class Carrier(Protocol):
    """The bytes of one connection, used by one thread. Spans are those of this end, already checked;
    both ends name the same number of bytes. Errors: TransferError, OSError; the carrier is then dead,
    and this end's memory is no longer touched."""

    def send(self, spans: Spans) -> None:
        """The bytes are on their way when it returns, and maybe not gone yet."""

    def settle(self) -> None:
        """The other end has said, or shown by asking for something new, that it has all that was sent."""

    def receive(self, spans: Spans, ask: Callable[[], None], confirm: Callable[[], None]) -> None:
        """`ask` makes the other end send; `confirm` takes its answer from the socket, and raises if it
        refuses. Each is called once, unless the one before fails."""

    def cut(self) -> None:
        """From any thread, any number of times: ends what runs, with an error. The socket has been
        shut down before. When it returns nothing is sent or received any more."""

    def close(self) -> None:
        """After the last use: the same, and gives everything back. Idempotent."""


class CarrierFactory(Protocol):
    """Makes the carriers of one transport."""

    name: str  # of the transport
    connections: int  # to one peer, at most
    same_socket: bool  # the bytes go over the socket of the requests
    answer_seconds: float | None  # how long a peer may take to answer a request; None: until cancelled

    def open(self, sock: socket.socket, regions: Sequence[Region], rank: int) -> Carrier:
        """For a connection whose greeting was accepted; rank is 0 where it was dialled, 1 where it
        was accepted. Both ends call it at once; it may exchange messages over the socket, which has
        a timeout. Errors: TransferError, OSError."""

    def close(self) -> None:
        """After the last carrier. Idempotent."""


class PeerConnection:
    """Belongs to one thread; only `hang_up` is called from others."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._carrier: Carrier | None = None
        self._lock = threading.Lock()
        self._hung_up = False

    @property
    def carrier(self) -> Carrier:
        assert self._carrier is not None, "opened"
        return self._carrier

    def open(self, carriers: CarrierFactory, regions: Sequence[Region], rank: int) -> None:
        """Errors: TransferError, OSError."""
        carrier = carriers.open(self.socket, regions, rank)
        with self._lock:
            self._carrier = carrier
            if self._hung_up:
                raise TransferError("hung up")

    def hang_up(self) -> None:
        """Wakes the thread of the line out of whatever it waits for."""
        with self._lock:
            self._hung_up = True
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            if self._carrier is not None:
                self._carrier.cut()

    def close(self) -> None:
        with self._lock:
            carrier, self._carrier = self._carrier, None
        self.socket.close()
        if carrier is not None:
            carrier.close()
