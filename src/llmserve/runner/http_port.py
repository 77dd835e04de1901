"""The port that several apiservers share: bound here, so that it outlives each of them."""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from llmserve.config.plan import ProcessSpec
from llmserve.core.errors import StartFailed
from llmserve.core.shared_port import PortShare, bind, make_table


class HttpPort:
    """Nobody can connect before the first apiserver listens. Life: open -> share_of ... -> close
    (idempotent)."""

    def __init__(self, processes: Sequence[ProcessSpec]) -> None:
        self._names = [spec.name for spec in processes if spec.direct]
        self._address = next((spec.http for spec in processes if spec.direct), None)
        self._socket: socket.socket | None = None
        self._table = -1

    def open(self) -> None:
        """Does nothing when each process has a port of its own. Errors: StartFailed."""
        if self._address is None:
            return
        try:
            self._socket = bind(self._address)
            self._table = make_table(len(self._names))
        except OSError as error:
            raise StartFailed(f"cannot listen on {self._address}: {error}") from error

    def share_of(self, spec: ProcessSpec) -> PortShare | None:
        """Between open and close."""
        if self._socket is None or spec.name not in self._names:
            return None
        return PortShare(self._socket.fileno(), self._table, self._names.index(spec.name))

    def close(self) -> None:
        """Refuses connections from now on, also those that no apiserver has taken yet."""
        if self._socket is not None:
            with suppress(OSError):  # nobody listened
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        if self._table >= 0:
            os.close(self._table)
            self._table = -1
