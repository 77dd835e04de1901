"""Where the two ranks of a group find each other: a torch store over their connection."""

import socket
import struct
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from llmserve.core.errors import TransferError
from llmserve.transfer.twosided import wire

_HEAD = struct.Struct("<II")
_MAX_BYTES = 1 << 16


def make_store(sock: socket.socket) -> Any:
    """A torch.distributed.Store: what one end sets, the other gets, until `seal`. It waits as long as
    the timeout of the socket says. Keep it while its group lives."""
    from torch.distributed import Store

    class ConnectionStore(Store):  # type: ignore[misc]  # torch is not seen by mypy; it must be a subclass
        def __init__(self) -> None:
            super().__init__()
            self._values: dict[str, bytes] = {}
            self._sealed = False

        def set(self, key: str, value: bytes | str) -> None:
            data = value.encode() if isinstance(value, str) else bytes(value)
            self._values[key] = data
            if not self._sealed:
                name = key.encode()
                sock.sendall(_HEAD.pack(len(name), len(data)) + name + data)

        def get(self, key: str) -> bytes:
            self.wait([key])
            return self._values[key]

        def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
            while not self.check(keys):
                if self._sealed:
                    raise TransferError(f"the group asks for {keys} after it was made")
                self._receive()

        def check(self, keys: Sequence[str]) -> bool:
            return all(key in self._values for key in keys)

        def seal(self) -> None:
            """The connection is used for requests now: what is set from here on stays at this end."""
            self._sealed = True

        def _receive(self) -> None:
            name_bytes, data_bytes = _HEAD.unpack(wire.receive_exactly(sock, _HEAD.size))
            if max(name_bytes, data_bytes) > _MAX_BYTES:
                raise TransferError("malformed message of a group")
            name = wire.receive_exactly(sock, name_bytes).decode(errors="replace")
            self._values[name] = bytes(wire.receive_exactly(sock, data_bytes))

    return ConnectionStore()
