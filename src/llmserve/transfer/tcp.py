"""The transport that is always available: plain TCP sockets, blocking threads, no copies in Python.

The bytes of a transfer go over the connection that requested it, straight between the socket and registered
memory, or the pinned slots of a staging where that memory is a GPU's. Python's sendmsg and recvmsg_into need
a buffer object for each piece; here numpy writes the kernel's iovec array (8 us instead of 150 for 720
pieces, on each side).
"""

import ctypes
import errno
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmserve.transfer.base import Int64Array, Memory, Region, Spans
from llmserve.transfer.devices import Bytes, RegionCopies, Staging
from llmserve.transfer.spans import RegionTable, coalesce, vectors
from llmserve.transfer.twosided import TwoSidedTransport

_MAX_PIECES = 1024  # of one system call (IOV_MAX on Linux)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class _MessageHeader(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("pieces", ctypes.c_void_p),
        ("piece_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


_SystemCall = Callable[[int, Any, int], int]
_libc = ctypes.CDLL(None, use_errno=True)
_sendmsg: _SystemCall = _libc.sendmsg
_recvmsg: _SystemCall = _libc.recvmsg
_libc.sendmsg.restype = _libc.recvmsg.restype = ctypes.c_ssize_t


def iovec(table: RegionTable, spans: Spans) -> Int64Array:
    """Returns the kernel's struct iovec of spans whose bounds have been checked."""
    joined = coalesce(spans)
    return vectors(table.starts(joined), joined.lengths)


def send(sock: socket.socket, vector: Int64Array) -> None:
    """Sends all bytes in order over a blocking socket. vector: of struct iovec. Errors: OSError."""
    _exhaust(sock, vector, _sendmsg, _NO_SIGNAL)


def receive(sock: socket.socket, vector: Int64Array) -> None:
    """Fills the memory of the vector. Errors: OSError, also when the peer leaves before."""
    _exhaust(sock, vector, _recvmsg, socket.MSG_WAITALL)


def _exhaust(sock: socket.socket, vector: Int64Array, call: _SystemCall, flags: int) -> None:
    while len(vector):
        vector = _without(vector, _handle(sock, vector[:_MAX_PIECES], call, flags))


def _handle(sock: socket.socket, vector: Int64Array, call: _SystemCall, flags: int) -> int:
    """Makes one system call and returns how many bytes it handled."""
    header = _MessageHeader(pieces=vector.ctypes.data, piece_count=len(vector))
    while (done := call(sock.fileno(), ctypes.byref(header), flags)) < 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    if done == 0:
        raise ConnectionError("the peer closed the connection")
    return done


def _without(vector: Int64Array, done: int) -> Int64Array:
    """Returns the vector without its first `done` bytes."""
    ends = np.cumsum(vector[:, 1])
    whole = int(np.searchsorted(ends, done, side="right"))
    rest = vector[whole:].copy()
    if over := done - int(ends[whole - 1]) if whole else done:
        rest[0] += (over, -over)
    return rest


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

    def send(self, spans: Spans) -> None:
        send(self._socket, iovec(self._table, spans))

    def settle(self) -> None:
        """Does nothing: the kernel has a copy of what was sent."""

    def receive(self, spans: Spans, ask: Callable[[], None], confirm: Callable[[], None]) -> None:
        ask()
        vector = iovec(self._table, spans)  # while the peer does the same
        confirm()
        receive(self._socket, vector)

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
        events = select.poll()
        events.register(self._socket, select.POLLIN)
        return bool(events.poll(None if seconds is None else 1e3 * seconds))


def _vector(packed: Bytes) -> Int64Array:
    return np.array([[packed.ctypes.data, packed.nbytes]], np.int64)


class TcpTransport(TwoSidedTransport):
    """staging: reaches the memory of its device; None: host memory only."""

    def __init__(self, host: str = "127.0.0.1", staging: Staging | None = None) -> None:
        """Errors: TransportUnavailable."""
        super().__init__(host, SocketCarriers(staging))
