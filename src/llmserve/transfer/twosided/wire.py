"""The messages of a connection.

A connection starts with a hello from the client and a reply; then the carrier is opened. One request follows
after the other, and the bytes of the spans go over the carrier:

read:  request, spans ->  <- reply, bytes
write: request, spans ->  <- reply  bytes ->  <- reply

Where the bytes go over the same socket, those of a write follow their request at once, and both replies are
read after them. Numbers are little-endian. The spans are three int64 arrays: regions, offsets, lengths.

Every message is padded to a multiple of 64 bytes for the bytes that follow it: the kernel copies at 40% of
its speed (measured on AMD Zen 4) when bytes have another alignment in its buffers than in memory.
"""

import socket
import ssl
import struct
from contextlib import suppress
from enum import IntEnum

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Spans
from llmserve.transfer.spans import SPAN_BYTES, pack_spans, unpack_spans

MAX_SPANS = 1 << 20
TOKEN_BYTES = 16
_MAGIC = b"LSKV\x00\x00\x00\x02"
_MESSAGE_BYTES = 64
_HELLO = struct.Struct(f"<8s{TOKEN_BYTES}sQ32x")
_REQUEST = struct.Struct("<BxxxI56x")
_REPLY = struct.Struct("<BxxxI56x")
_SHORT_REQUEST_BYTES = 2 * _MESSAGE_BYTES  # of up to two spans, or of none: nothing follows a request of none
_ACCEPTED = _REPLY.pack(1, 0)
_MAX_REASON_BYTES = 4096
_CONGESTION_CONTROL = b"cubic"  # bbr, a common default, stalls a burst for 200 ms in each RTT probe
_SILENCE_MS = 10_000  # the peer's machine is gone when data is not acknowledged for so long


class TransferOperation(IntEnum):
    READ = 1
    WRITE = 2


def tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)
    if hasattr(socket, "TCP_CONGESTION"):
        with suppress(OSError):  # not allowed here, so the system's choice stays
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION_CONTROL)


def send_hello(sock: socket.socket, token: bytes, generation: int) -> None:
    sock.sendall(_HELLO.pack(_MAGIC, token, generation))


def receive_hello(sock: socket.socket) -> tuple[bytes, int]:
    """Returns the token and the generation that the client expects. Errors: TransferError, OSError."""
    magic, token, generation = _HELLO.unpack(receive_exactly(sock, _HELLO.size))
    if magic != _MAGIC:
        raise TransferError("not a peer of this transport")
    return token, generation


def send_request(sock: socket.socket, operation: TransferOperation, spans: Spans) -> None:
    head = _REQUEST.pack(operation, len(spans.lengths))
    sock.sendall(_padded(head + pack_spans(spans)))


def receive_request(sock: socket.socket) -> tuple[TransferOperation, Spans]:
    """Errors: TransferError for a malformed request; ConnectionError when the peer has left."""
    message = _completed(sock, sock.recv(_SHORT_REQUEST_BYTES), _REQUEST.size)
    operation, count = _REQUEST.unpack_from(message)
    if operation not in (TransferOperation.READ, TransferOperation.WRITE) or count > MAX_SPANS:
        raise TransferError("malformed request")
    body = _completed(sock, message[_REQUEST.size :], _padded_bytes(count * SPAN_BYTES))
    return TransferOperation(operation), unpack_spans(body, count)


def _completed(sock: socket.socket, message: bytes, size: int) -> bytes:
    """Returns a message of which the beginning has been received."""
    return message if len(message) >= size else message + receive_exactly(sock, size - len(message))


def accept(sock: socket.socket, more: bool = False) -> None:
    """more: something follows at once on this socket and may go in the same packet."""
    sock.sendall(_ACCEPTED, _flags(sock, socket.MSG_MORE) if more else 0)


def refuse(sock: socket.socket, reason: str) -> None:
    text = reason.encode()[:_MAX_REASON_BYTES]
    sock.sendall(_padded(_REPLY.pack(0, len(text)) + text))


def receive_reply(sock: socket.socket) -> None:
    """Errors: TransferError with the peer's reason when it refuses."""
    accepted, size = _REPLY.unpack(receive_exactly(sock, _REPLY.size))
    if not accepted:
        size = min(size, _MAX_REASON_BYTES)
        reason = receive_exactly(sock, _padded_bytes(size))[:size].decode(errors="replace")
        raise TransferError(f"refused by the peer: {reason}")


def _padded(message: bytes) -> bytes:
    return message.ljust(_padded_bytes(len(message)), b"\0")


def _padded_bytes(size: int) -> int:
    return -(-size // _MESSAGE_BYTES) * _MESSAGE_BYTES


def receive_exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    receive_into(sock, memoryview(data))
    return data


def _flags(sock: socket.socket, flags: int) -> int:
    """Returns the flags that only save system calls, where the socket takes them."""
    return 0 if isinstance(sock, ssl.SSLSocket) else flags


def receive_into(sock: socket.socket, buffer: memoryview) -> None:
    """Fills the buffer. Errors: ConnectionError when the peer leaves before."""
    while buffer:
        done = sock.recv_into(buffer, 0, _flags(sock, socket.MSG_WAITALL))
        if done == 0:
            raise ConnectionError("the peer closed the connection")
        buffer = buffer[done:]
