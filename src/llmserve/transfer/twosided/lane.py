"""What a transport says about its way of moving bytes."""

import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from llmserve.transfer.base import Region, Spans


class Lane(Protocol):
    """The bytes of one connection, used by one thread. Spans are those of this end, already checked;
    both ends name the same number of bytes. Errors of send and receive: TransferError, OSError; the
    lane is then dead, and this end's memory is no longer touched."""

    def send(self, spans: Spans) -> None:
        """Returns when the memory may change again."""

    def receive(self, spans: Spans, invite: Callable[[], None]) -> None:
        """Calls `invite`, which makes the other end send or raises, once this end is ready for it."""

    def cut(self) -> None:
        """From any thread, any number of times: ends a send or receive that runs, with an error.
        The socket has been shut down before."""

    def close(self) -> None:
        """After the last use. Idempotent."""


class Lanes(Protocol):
    """Makes the lanes of one transport."""

    name: str  # of the transport
    connections: int  # to one peer, at most
    answer_seconds: float | None  # how long a peer may take to answer a request; None: until cancelled

    def open(self, sock: socket.socket, regions: Sequence[Region], rank: int) -> Lane:
        """For a connection whose greeting was accepted; rank is 0 where it was dialled, 1 where it
        was accepted. Both ends call it at once; it may exchange messages over the socket, which has
        a timeout. Errors: TransferError, OSError."""

    def close(self) -> None:
        """After the last lane. Idempotent."""
