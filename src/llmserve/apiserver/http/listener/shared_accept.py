"""Takes connections from a listening socket that other processes take from as well, each its fair share.

All processes are woken by a new connection. The one with the fewest takes it; the others look again a moment
later, and less often the longer it waits, in case that one was too busy to take it: who waits longer than
PATIENCE_SECONDS takes the connection all the same.
"""

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable

from llmserve.apiserver.http.listener.shared_port import ConnectionTable, PortShare

_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.05
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.001, 0.008
_NO_ROOM_SECONDS = 1.0  # no file descriptor is free: a closed connection will free one
_BACKLOG = 2048


class SharedAccept:
    """Made inside a loop. take: gets each accepted connection, and does not block. count: of connections that
    this process has open. Life: start (once) -> publish, every tenth of a second -> close (idempotent)."""

    def __init__(
        self, share: PortShare, take: Callable[[socket.socket], None], count: Callable[[], int]
    ) -> None:
        """Errors: OSError for descriptors that were not inherited."""
        os.set_inheritable(share.socket_fd, False)
        self._socket = socket.socket(fileno=share.socket_fd)
        self._socket.setblocking(False)
        self._table = ConnectionTable(share.table_fd, share.index)
        self._take, self._count = take, count
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        self._gave_way_at = float("inf")  # for the connection that waits now
        self._looked_at = 0.0
        self._pause_seconds = _PAUSE_SECONDS  # before the next look at that connection
        self._closed = False

    def start(self) -> None:
        """The first process that does this opens the port."""
        self._socket.listen(_BACKLOG)
        self.publish()
        self._watch()

    def publish(self) -> None:
        if not self._closed:
            self._table.publish(self._count(), time.monotonic())

    def close(self) -> None:
        """The socket stays open for the others."""
        if self._closed:
            return
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._socket)
        self._table.close()
        self._socket.close()

    def _watch(self) -> None:
        self._loop.add_reader(self._socket, self._on_waiting)

    def _on_waiting(self) -> None:
        """A connection waits, or did a moment ago."""
        while self._is_my_turn():
            self._forget_waiting()
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._stop_for(error)
                return
            self._take(connection)
            self.publish()
        self._pause(self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)

    def _stop_for(self, error: OSError) -> None:
        if error.errno == errno.EINVAL:  # it does not listen any more: the cluster is stopping
            self._loop.remove_reader(self._socket)
            return
        _log.error("no connection can be taken: %s", error.strerror)
        self._pause(_NO_ROOM_SECONDS)

    def _is_my_turn(self) -> bool:
        now = time.monotonic()
        if self._table.is_least(self._count(), now):
            return True
        if now - self._looked_at > PATIENCE_SECONDS:  # nobody waited in between: this is another connection
            self._forget_waiting()
        self._looked_at = now
        self._gave_way_at = min(self._gave_way_at, now)
        return now - self._gave_way_at > PATIENCE_SECONDS

    def _forget_waiting(self) -> None:
        """What waits now, or next, is another connection."""
        self._gave_way_at, self._pause_seconds = float("inf"), _PAUSE_SECONDS

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket)
        self._again = self._loop.call_later(seconds, self._watch)
