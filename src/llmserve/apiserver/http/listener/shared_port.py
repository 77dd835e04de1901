"""One listening socket for several processes, and the table by which they share its connections evenly.

The process that starts the others binds the socket and makes the table; both are inherited. The kernel
keeps new connections in one queue that outlives each of the processes, so none is lost with a process that
ends. Each process publishes in its slot of the table how many connections it has open, and takes the next
one only when no other has fewer. The table is shared memory because it is read once for each connection: a
message would be late.
"""

import mmap
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from llmserve.core.addresses import split_address

# A process that has published nothing for so long hangs or is gone: the others do not wait for it.
FRESH_SECONDS = 0.25
_SLOT = struct.Struct("=dq")  # time on CLOCK_MONOTONIC, which all processes share; connections


@dataclass(frozen=True, slots=True)
class PortShare:
    """What one process inherits. index: its slot in the table."""

    socket_fd: int
    table_fd: int
    index: int

    def __str__(self) -> str:
        """Returns the text of the flag."""
        return f"{self.socket_fd}:{self.table_fd}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> "PortShare":
        """Errors: ValueError."""
        socket_fd, table_fd, index = map(int, text.split(":"))
        return cls(socket_fd, table_fd, index)


def bind(address: str) -> socket.socket:
    """Returns a TCP socket at HOST:PORT that does not listen yet. Errors: OSError, ValueError."""
    host, port = split_address(address)
    family, kind, protocol, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    # asyncio sends small writes at once (TCP_NODELAY) only over sockets that name their protocol.
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(found[:2])
    except OSError:
        bound.close()
        raise
    return bound


def make_table(processes: int) -> int:
    """Returns a file descriptor. The memory is gone when nobody has it open. Errors: OSError."""
    fd = os.memfd_create("llmserve-connections")
    os.truncate(fd, processes * _SLOT.size)
    return fd


class ConnectionTable:
    """The table as one of its processes sees it. Life: publish, is_least ... -> close (idempotent)."""

    def __init__(self, fd: int, index: int) -> None:
        """The table owns `fd` from now on. Errors: OSError, ValueError."""
        self._index = index
        try:
            self._memory = mmap.mmap(fd, 0)
        finally:
            os.close(fd)

    def publish(self, connections: int, now: float) -> None:
        """Publishes how many connections this process has open. Call it at least every FRESH_SECONDS."""
        _SLOT.pack_into(self._memory, self._index * _SLOT.size, now, connections)

    def is_least(self, connections: int, now: float) -> bool:
        """Returns whether no other live process has fewer than this one's `connections`."""
        return all(connections <= others for others in self._others(now))

    def _others(self, now: float) -> Iterator[int]:
        for index, (published_at, connections) in enumerate(_SLOT.iter_unpack(self._memory)):
            if index != self._index and now - published_at < FRESH_SECONDS:
                yield connections

    def close(self) -> None:
        """The others see at once that this process takes no more connections."""
        if not self._memory.closed:
            _SLOT.pack_into(self._memory, self._index * _SLOT.size, float("-inf"), 0)
            self._memory.close()
