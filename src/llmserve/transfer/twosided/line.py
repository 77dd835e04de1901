"""A connection with its carrier."""

import contextlib
import socket
import threading
from collections.abc import Sequence

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Region
from llmserve.transfer.twosided.carrier import Carrier, Carriers


class Line:
    """Belongs to one thread; only `hang_up` is called from others."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._carrier: Carrier | None = None
        self._lock = threading.Lock()
        self._hung_up = False

    @property
    def carrier(self) -> Carrier:
        assert self._carrier is not None, "opened"
        return self._carrier

    def open(self, carriers: Carriers, regions: Sequence[Region], rank: int) -> None:
        """Errors: TransferError, OSError."""
        carrier = carriers.open(self.socket, regions, rank)
        with self._lock:
            self._carrier = carrier
            if self._hung_up:
                raise TransferError("hung up")

    def hang_up(self) -> None:
        """Wakes the thread of the line out of whatever it waits for."""
        with self._lock:
            self._hung_up = True
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            if self._carrier is not None:
                self._carrier.cut()

    def close(self) -> None:
        with self._lock:
            carrier, self._carrier = self._carrier, None
        self.socket.close()
        if carrier is not None:
            carrier.close()
