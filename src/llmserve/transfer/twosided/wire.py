"""The messages of a connection.

It starts with a Greeting from the client and a Reply; then the carrier is opened. After that, one
request at a time, the bytes of the spans going over the carrier:
  read:   request, spans ->    <- Reply    <- bytes
  write:  request, spans ->    <- Reply    bytes ->    <- Reply
Numbers are little-endian. The spans are three int64 arrays: regions, offsets, lengths.
"""

import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import IntEnum

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Spans

MAX_SPANS = 1 << 20
TOKEN_BYTES = 16
_MAGIC = b"LSKV\x00\x00\x00\x01"
_GREETING = struct.Struct(f"<8s{TOKEN_BYTES}sQ")
_REQUEST = struct.Struct("<BxxxI")
_REPLY = struct.Struct("<BxxxI")
_ACCEPTED = _REPLY.pack(1, 0)
_MAX_BUFFERS = 1024  # of one system call (IOV_MAX on Linux)
_MAX_REASON_BYTES = 4096
_CONGESTION_CONTROL = b"cubic"  # bbr, a common default, stalls a burst for 200 ms in each RTT probe
_SILENCE_MS = 10_000  # unacknowledged for so long: the peer's machine is gone


class Operation(IntEnum):
    READ = 1
    WRITE = 2


def tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)
    if hasattr(socket, "TCP_CONGESTION"):
        with suppress(OSError):  # not allowed here: the system's choice stays
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION_CONTROL)


def send_greeting(sock: socket.socket, token: bytes, generation: int) -> None:
    sock.sendall(_GREETING.pack(_MAGIC, token, generation))


def receive_greeting(sock: socket.socket) -> tuple[bytes, int]:
    """The token and the generation that the client wants. Errors: TransferError, OSError."""
    magic, token, generation = _GREETING.unpack(receive_exactly(sock, _GREETING.size))
    if magic != _MAGIC:
        raise TransferError("not a peer of this transport")
    return token, generation


def send_request(sock: socket.socket, operation: Operation, spans: Spans) -> None:
    head = _REQUEST.pack(operation, len(spans.lengths))
    body = np.concatenate((spans.regions, spans.offsets, spans.lengths)).astype("<i8", copy=False)
    send_all(sock, [memoryview(head), memoryview(body.tobytes())])


def receive_request(sock: socket.socket) -> tuple[Operation, Spans]:
    """Errors: TransferError for what is no request; ConnectionError when the peer has left."""
    operation, count = _REQUEST.unpack(receive_exactly(sock, _REQUEST.size))
    if operation not in (Operation.READ, Operation.WRITE) or count > MAX_SPANS:
        raise TransferError("malformed request")
    numbers = np.frombuffer(receive_exactly(sock, count * 24), "<i8").astype(np.int64)
    return Operation(operation), Spans(numbers[:count], numbers[count : 2 * count], numbers[2 * count :])


def accept(sock: socket.socket) -> None:
    sock.sendall(_ACCEPTED)


def refuse(sock: socket.socket, reason: str) -> None:
    text = reason.encode()[:_MAX_REASON_BYTES]
    sock.sendall(_REPLY.pack(0, len(text)) + text)


def receive_reply(sock: socket.socket) -> None:
    """Errors: TransferError with the peer's reason when it refuses."""
    accepted, size = _REPLY.unpack(receive_exactly(sock, _REPLY.size))
    if not accepted:
        reason = receive_exactly(sock, min(size, _MAX_REASON_BYTES)).decode(errors="replace")
        raise TransferError(f"refused by the peer: {reason}")


def receive_exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    receive_all(sock, [memoryview(data)] if size else [])
    return data


def send_all(sock: socket.socket, buffers: Iterable[memoryview]) -> None:
    _exhaust(buffers, sock.sendmsg)


def receive_all(sock: socket.socket, buffers: Iterable[memoryview]) -> None:
    """Fills the buffers. Errors: ConnectionError when the peer leaves before."""
    _exhaust(buffers, lambda window: sock.recvmsg_into(window, 0, socket.MSG_WAITALL)[0])


def _exhaust(buffers: Iterable[memoryview], step: Callable[[list[memoryview]], int]) -> None:
    """Repeats a scatter/gather call that handles some first bytes, until all are handled."""
    queue = deque(buffers)
    while queue:
        window = [queue.popleft() for _ in range(min(_MAX_BUFFERS, len(queue)))]
        done = step(window)
        if done == 0:
            raise ConnectionError("the peer closed the connection")
        for index, buffer in enumerate(window):
            if done < len(buffer):
                queue.extendleft(reversed([buffer[done:], *window[index + 1 :]]))
                break
            done -= len(buffer)
