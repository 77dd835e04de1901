"""The transport that is always available: plain TCP sockets, blocking threads, no copies in Python.

The bytes of a transfer go over the connection that requested it, straight between the socket and registered
memory, or the pinned slots of a staging where that memory is a GPU's. Where the cluster has certificates, the
connection is one of TLS.
"""

import socket
from collections.abc import Callable, Sequence

import numpy as np

from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.transfer.base import Int64Array, Memory, Region, Spans
from llmserve.transfer.devices import Bytes, RegionCopies, Staging
from llmserve.transfer.sockets import has_bytes, memory_view, receive, send
from llmserve.transfer.spans import RegionTable, coalesce, vectors
from llmserve.transfer.twosided import TwoSidedTransport
from llmserve.transfer.twosided.wire import receive_into


def iovec(table: RegionTable, spans: Spans) -> Int64Array:
    """Returns the kernel's struct iovec of spans whose bounds have been checked."""
    joined = coalesce(spans)
    return vectors(table.starts(joined), joined.lengths)


class SocketCarriers:
    name = "tcp"
    connections = 4
    same_socket = True
    answer_seconds: float | None = None  # a timeout would make the socket non-blocking, and receiving slow

    def __init__(self, staging: Staging | None) -> None:
        self._staging = staging

    def reaches(self, memory: Memory) -> bool:
        return memory.on_host or (self._staging is not None and self._staging.copies.memory == memory)

    def open(self, sock: socket.socket, regions: Sequence[Region], rank: int) -> "SocketCarrier":
        if self._staging is None or all(region.memory.on_host for region in regions):
            return SocketCarrier(sock, regions)
        return StagedSocketCarrier(sock, regions, self._staging)

    def close(self) -> None:
        """Does nothing: the carriers share nothing."""


class SocketCarrier:
    def __init__(self, sock: socket.socket, regions: Sequence[Region]) -> None:
        self._socket = sock
        self._table = RegionTable.of(regions)
        self._views = [memory_view(region.address, region.length_bytes) for region in regions]

    def send(self, spans: Spans) -> None:
        if len(spans.lengths) == 1:
            self._socket.sendall(self._view(spans))
        else:
            send(self._socket, iovec(self._table, spans))

    def settle(self) -> None:
        """Does nothing: the kernel has a copy of what was sent."""

    def receive(self, spans: Spans, ask: Callable[[], None], confirm: Callable[[], None]) -> None:
        ask()
        if len(spans.lengths) == 1:
            confirm()
            receive_into(self._socket, self._view(spans))
        else:
            vector = iovec(self._table, spans)  # while the peer does the same
            confirm()
            receive(self._socket, vector)

    def _view(self, spans: Spans) -> memoryview:
        """Returns the memory of a single piece, which a plain call takes at a third of the cost."""
        start: int = spans.offsets.item()
        return self._views[spans.regions.item()][start : start + spans.lengths.item()]

    def cut(self) -> None:
        """Does nothing: the socket has been shut down."""

    def close(self) -> None:
        """Does nothing: the owner closes the socket."""


class StagedSocketCarrier(SocketCarrier):
    """The carrier of memory that no socket reaches. What goes over the socket is the same."""

    def __init__(self, sock: socket.socket, regions: Sequence[Region], staging: Staging) -> None:
        super().__init__(sock, regions)
        self._memory = RegionCopies(regions, staging.copies)
        self._staging = staging

    def send(self, spans: Spans) -> None:
        self._staging.outgoing(self._memory, spans, lambda packed: send(self._socket, _vector(packed)))

    def receive(self, spans: Spans, ask: Callable[[], None], confirm: Callable[[], None]) -> None:
        ask()
        confirm()
        self._staging.incoming(self._memory, spans, self._fill, self._arrived)

    def _fill(self, packed: Bytes) -> None:
        receive(self._socket, _vector(packed))

    def _arrived(self, seconds: float | None) -> bool:
        """Says whether bytes are there, or the end of the connection."""
        return has_bytes(self._socket, seconds)


def _vector(packed: Bytes) -> Int64Array:
    return np.array([[packed.ctypes.data, packed.nbytes]], np.int64)


class TcpTransport(TwoSidedTransport):
    """staging: reaches the memory of its device; None: host memory only."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        staging: Staging | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """Errors: TransportUnavailable."""
        super().__init__(host, SocketCarriers(staging), credentials)
