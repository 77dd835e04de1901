"""The transport that is always there: plain TCP sockets, blocking threads, no copies in Python.

The bytes of a transfer go over the connection that asked for it.
"""

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmserve.transfer.base import Int64Array, Region, Spans
from llmserve.transfer.spans import coalesce
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


class Memory:
    """Registered regions."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._addresses = np.array([region.address for region in regions], np.int64)

    def vector(self, spans: Spans) -> Int64Array:
        """The kernel's struct iovec of spans whose bounds have been checked: shape [n, 2], address and
        length."""
        joined = coalesce(spans)
        vector = np.empty((len(joined.lengths), 2), np.int64)
        vector[:, 0] = self._addresses[joined.regions] + joined.offsets
        vector[:, 1] = joined.lengths
        return vector


def send(sock: socket.socket, vector: Int64Array) -> None:
    """All bytes, in order, over a blocking socket. Errors: OSError."""
    _exhaust(sock, vector, _sendmsg, _NO_SIGNAL)


def receive(sock: socket.socket, vector: Int64Array) -> None:
    """Fills the memory. Errors: OSError, also when the peer leaves before."""
    _exhaust(sock, vector, _recvmsg, socket.MSG_WAITALL)


def _exhaust(sock: socket.socket, vector: Int64Array, call: _SystemCall, flags: int) -> None:
    while len(vector):
        vector = _without(vector, _handle(sock, vector[:_MAX_PIECES], call, flags))


def _handle(sock: socket.socket, vector: Int64Array, call: _SystemCall, flags: int) -> int:
    """One system call; the bytes it has handled."""
    header = _MessageHeader(pieces=vector.ctypes.data, piece_count=len(vector))
    while (done := call(sock.fileno(), ctypes.byref(header), flags)) < 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    if done == 0:
        raise ConnectionError("the peer closed the connection")
    return done


def _without(vector: Int64Array, done: int) -> Int64Array:
    """What is left of a vector after its first bytes."""
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


class TcpTransport(TwoSidedTransport):
    def __init__(self, host: str = "127.0.0.1") -> None:
        """Errors: TransportUnavailable."""
        super().__init__(host, SocketCarriers())
