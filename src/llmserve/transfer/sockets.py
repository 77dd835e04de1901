"""Moves bytes between memory and a blocking socket, without copies in Python.

Python's sendmsg and recvmsg_into need a buffer object for each piece. Here the kernel's iovec array, which
numpy writes, is passed on as it is (8 us instead of 150 for 720 pieces, on each side). TLS copies anyway, so
it takes the pieces one by one.
"""

import ctypes
import errno
import os
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from llmserve.transfer.base import Int64Array

_MAX_PIECES = 1024  # of one system call (IOV_MAX on Linux)
_JOINED_BYTES = 64 << 10
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


def send(sock: socket.socket, vector: Int64Array) -> None:
    """Sends all bytes in order over a blocking socket. vector: of struct iovec. Errors: OSError."""
    if isinstance(sock, ssl.SSLSocket):
        return _send_encrypted(sock, vector)
    return _exhaust(sock, vector, _sendmsg, _NO_SIGNAL)


def receive(sock: socket.socket, vector: Int64Array) -> None:
    """Fills the memory of the vector. Errors: OSError, also when the peer leaves before."""
    if isinstance(sock, ssl.SSLSocket):
        return _receive_encrypted(sock, vector)
    return _exhaust(sock, vector, _recvmsg, socket.MSG_WAITALL)


def _exhaust(sock: socket.socket, vector: Int64Array, call: _SystemCall, flags: int) -> None:
    while len(vector):
        at_once = vector[:_MAX_PIECES]
        done = _handle(sock, at_once, call, flags)
        whole = done == np.add.reduce(at_once[:, 1])  # a slice costs a fifth of `_without`
        vector = vector[len(at_once) :] if whole else _without(vector, done)


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


def has_bytes(sock: socket.socket, seconds: float | None) -> bool:
    """Says whether bytes are there, or the end of the connection. seconds: waits at most so long; None: for
    ever."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    events = select.poll()
    events.register(sock, select.POLLIN)
    return bool(events.poll(None if seconds is None else 1e3 * seconds))


def _send_encrypted(sock: ssl.SSLSocket, vector: Int64Array) -> None:
    """Joins small pieces: each call makes a packet."""
    waiting = bytearray()
    for piece in _pieces(vector):
        if len(piece) < _JOINED_BYTES:
            waiting += piece
        if waiting and (len(waiting) >= _JOINED_BYTES or len(piece) >= _JOINED_BYTES):
            sock.sendall(waiting)
            waiting.clear()
        if len(piece) >= _JOINED_BYTES:
            sock.sendall(piece)
    if waiting:
        sock.sendall(waiting)


def _receive_encrypted(sock: ssl.SSLSocket, vector: Int64Array) -> None:
    for piece in _pieces(vector):
        rest = piece
        while rest:
            done = sock.recv_into(rest)
            if done == 0:
                raise ConnectionError("the peer closed the connection")
            rest = rest[done:]


def _pieces(vector: Int64Array) -> Iterator[memoryview]:
    for address, length in vector.tolist():
        yield memory_view(address, length)


def memory_view(address: int, length_bytes: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * length_bytes).from_address(address)).cast("B")
