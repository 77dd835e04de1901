"""Registered memory straight to and from the socket of the requests."""

import ctypes
import socket
from collections.abc import Callable, Sequence

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.spans import coalesce
from llmserve.transfer.twosided import wire


class SocketCarriers:
    name = "tcp"
    connections = 4
    answer_seconds: float | None = None  # a timeout would make the socket non-blocking, and receiving slow

    def open(self, sock: socket.socket, regions: Sequence[Region], rank: int) -> "SocketCarrier":
        return SocketCarrier(sock, regions)

    def close(self) -> None:
        """Nothing is shared."""


class SocketCarrier:
    def __init__(self, sock: socket.socket, regions: Sequence[Region]) -> None:
        self._socket = sock
        self._views = [_view(region) for region in regions]

    def send(self, spans: Spans) -> None:
        wire.send_all(self._socket, self._buffers(spans))

    def settle(self) -> None:
        """Nothing to do: the kernel has a copy of what was sent."""

    def receive(self, spans: Spans, ask: Callable[[], None], confirm: Callable[[], None]) -> None:
        ask()
        confirm()
        wire.receive_all(self._socket, self._buffers(spans))

    def cut(self) -> None:
        """Nothing to do: the socket has been shut down."""

    def close(self) -> None:
        self._views.clear()

    def _buffers(self, spans: Spans) -> list[memoryview]:
        joined = coalesce(spans)
        columns = zip(joined.regions.tolist(), joined.offsets.tolist(), joined.lengths.tolist(), strict=True)
        return [self._views[region][offset : offset + length] for region, offset, length in columns]


def _view(region: Region) -> memoryview:
    array = (ctypes.c_ubyte * region.length_bytes).from_address(region.address)
    return memoryview(array).cast("B")
