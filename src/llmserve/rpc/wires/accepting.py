"""Takes connections from a listening socket, before anything is read from them."""

import asyncio
import logging
import socket
from collections.abc import Callable

_log = logging.getLogger(__name__)
_NO_ROOM_SECONDS = 0.1  # no file descriptor is free: a closed connection will free one


async def accept_all(listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
    """Runs until cancelled, and then closes the listener, which does not block. take: gets each connection,
    and does not block. A task that it starts begins before the next connection is taken."""
    loop = asyncio.get_running_loop()
    with listener:
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                _log.debug("no connection can be taken: %s", error)
                await asyncio.sleep(_NO_ROOM_SECONDS)
            else:
                take(connection)
                await asyncio.sleep(0)


def address_of(connection: socket.socket) -> str:
    """Returns the IP address at the other end; empty when it has left, and for sockets that have none."""
    try:
        peer = connection.getpeername()
    except OSError:
        return ""
    return str(peer[0]) if isinstance(peer, tuple) else ""
