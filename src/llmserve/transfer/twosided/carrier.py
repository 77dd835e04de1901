"""What a transport says about its way of moving bytes."""

import socket
from collections.abc import Callable, Sequence
from typing import Protocol

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


class Carriers(Protocol):
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
