"""A connection with its lane."""

import contextlib
import socket
import threading
from collections.abc import Sequence

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Region
from llmserve.transfer.twosided.lane import Lane, Lanes


class Line:
    """Belongs to one thread; only `hang_up` is called from others."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._lane: Lane | None = None
        self._lock = threading.Lock()
        self._hung_up = False

    @property
    def lane(self) -> Lane:
        assert self._lane is not None, "opened"
        return self._lane

    def open(self, lanes: Lanes, regions: Sequence[Region], rank: int) -> None:
        """Errors: TransferError, OSError."""
        lane = lanes.open(self.socket, regions, rank)
        with self._lock:
            self._lane = lane
            if self._hung_up:
                raise TransferError("hung up")

    def hang_up(self) -> None:
        """Wakes the thread of the line out of whatever it waits for."""
        with self._lock:
            self._hung_up = True
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            if self._lane is not None:
                self._lane.cut()

    def close(self) -> None:
        with self._lock:
            lane, self._lane = self._lane, None
        self.socket.close()
        if lane is not None:
            lane.close()
