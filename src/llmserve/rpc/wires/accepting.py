"""Takes connections from a listening socket. Of those whose other end has proved nothing yet, says which one
has to go when there are too many."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_UNPROVEN = 64
_NO_ROOM_SECONDS = 0.1  # no file descriptor is free: a closed connection will free one


async def accept_all(listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
    """Runs until cancelled, and then closes the listener, which does not block. take: gets each connection,
    and does not block. A task that it starts begins before the next connection is taken."""
    with listener:
        while True:
            try:
                # `loop.sock_accept` loses a connection when it is cancelled in the turn that accepts it.
                connection, _ = listener.accept()
            except BlockingIOError:
                await _readable(listener)
            except OSError as error:
                _log.debug("no connection can be taken: %s", error)
                await asyncio.sleep(_NO_ROOM_SECONDS)
            else:
                _hand_over(connection, take)
                await asyncio.sleep(0)


def _hand_over(connection: socket.socket, take: Callable[[socket.socket], None]) -> None:
    connection.setblocking(False)
    try:
        take(connection)
    except BaseException:
        connection.close()
        raise


async def _readable(listener: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listener, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(listener)


def address_of(connection: socket.socket) -> str:
    """Returns the IP address at the other end; empty when it has left, and for sockets that have none."""
    try:
        peer = connection.getpeername()
    except OSError:
        return ""
    return str(peer[0]) if isinstance(peer, tuple) else ""


class UnprovenConnections(Generic[T]):
    """The unproven connections of one server. A new one is always let in, so that strangers who keep many
    open keep nobody out. Pure; the owner locks."""

    def __init__(self, most: int = MAX_UNPROVEN) -> None:
        self._most = most
        self._addresses: dict[T, str] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._addresses)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._addresses))

    def add(self, connection: T, address: str) -> T | None:
        """Returns the connection that the owner has to drop to make room, which does not count any more: the
        oldest one of the address that has the most. None: there is room."""
        dropped = self._oldest_of_the_most() if len(self) >= self._most else None
        if dropped is not None:
            self.remove(dropped)
        self._addresses[connection] = address
        return dropped

    def remove(self, connection: T) -> None:
        """It has proved itself, or has ended. Idempotent."""
        self._addresses.pop(connection, None)

    def _oldest_of_the_most(self) -> T:
        counts = Counter(self._addresses.values())
        most = max(counts.values())
        return next(one for one, address in self._addresses.items() if counts[address] == most)
