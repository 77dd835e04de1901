"""Registered memory straight to and from the socket of the requests."""

import socket
from collections.abc import Callable, Sequence

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.tcp.memory import Memory, receive, send


class SocketCarriers:
    name = "tcp"
    connections = 4
    same_socket = True
    answer_seconds: float | None = None  # a timeout would make the socket non-blocking, and receiving slow

    def open(self, sock: socket.socket, regions: Sequence[Region], rank: int) -> "SocketCarrier":
        return SocketCarrier(sock, regions)

    def close(self) -> None:
        """Nothing is shared."""


class SocketCarrier:
    def __init__(self, sock: socket.socket, regions: Sequence[Region]) -> None:
        self._socket = sock
        self._memory = Memory(regions)

    def send(self, spans: Spans) -> None:
        send(self._socket, self._memory.vector(spans))

    def settle(self) -> None:
        """Nothing to do: the kernel has a copy of what was sent."""

    def receive(self, spans: Spans, ask: Callable[[], None], confirm: Callable[[], None]) -> None:
        ask()
        vector = self._memory.vector(spans)  # while the peer does the same
        confirm()
        receive(self._socket, vector)

    def cut(self) -> None:
        """Nothing to do: the socket has been shut down."""

    def close(self) -> None:
        """The socket is closed by its owner."""
