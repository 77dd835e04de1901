"""What this machine offers: cores, GPUs and ports; who holds a port that is not free."""

import errno
import os
import random
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from llmserve.apiserver.http.listener.shared_port import PortShare, bind, make_table
from llmserve.config.plan import ProcessSpec
from llmserve.core.addresses import split_address
from llmserve.core.errors import StartFailed

_LOOPBACK = "127.0.0.1"
_PORTS_BELOW_EPHEMERAL = 12000
_ATTEMPTS = 1000
_LISTENING = "0A"


def available_cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def available_gpus(device_folder: Path = Path("/dev")) -> tuple[int, ...]:
    """Returns the indices of the NVIDIA GPUs; of those in CUDA_VISIBLE_DEVICES if it has numbers."""
    names = (re.fullmatch(r"nvidia(\d+)", path.name) for path in device_folder.glob("nvidia*"))
    present = sorted(int(match[1]) for match in names if match)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(present)
    chosen = [int(part) for part in visible.split(",") if part.strip().isdigit()]
    return tuple(gpu for gpu in chosen if gpu in present)


class HeldPorts:
    """Free ports on loopback that are held until close: nobody who looks for a free port finds one of them,
    in another cluster neither, but a server may listen on it, and again after its restart. That is so because
    a socket of ours is bound to it that never listens, and servers set SO_REUSEADDR. Life: pick ... -> close
    (idempotent)."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def pick(self) -> int:
        """Returns a port below those of outgoing connections. Errors: StartFailed."""
        end = _first_ephemeral_port()
        for _ in range(_ATTEMPTS):
            port = random.randrange(max(1024, end - _PORTS_BELOW_EPHEMERAL), end)
            if (held := _hold(port)) is not None:
                self._sockets.append(held)
                return port
        raise StartFailed("no free port was found on this machine")

    def close(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _hold(port: int) -> socket.socket | None:
    """Returns None when the port is in use or held, by this process too."""
    held = socket.socket()
    try:
        held.bind((_LOOPBACK, port))
    except OSError:
        held.close()
        return None
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # from here on a server may share it
    return held


def _first_ephemeral_port() -> int:
    with suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if first > 2048:
            return first
    return 32768


def check_free(addresses: Sequence[str]) -> None:
    """addresses: HOST:PORT of each. Errors: StartFailed for the first that cannot be listened on, with the
    process that holds it when that can be seen."""
    for address in addresses:
        host, port = split_address(address)
        error = _bind_error(host, port)
        if error is not None:
            raise StartFailed(_explain(address, port, error))


def _explain(address: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        holders = ", ".join(sorted({f"{name} (pid {pid})" for pid, name in holders_of(port)}))
        return f"{address}: the port is in use" + (f" by {holders}" if holders else "")
    if error.errno == errno.EACCES:
        return f"{address}: this user may not listen on port {port}; take one from 1024 on"
    return f"{address}: cannot be listened on: {error.strerror or error}"


def _bind_error(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error
    return None


def holders_of(port: int) -> Iterator[tuple[int, str]]:
    """Yields pid and name of the processes that listen on a TCP port, of those that this user may look
    into."""
    inodes = set(_listening_inodes(port))
    for folder in Path("/proc").glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            if any(_socket_inode(link) in inodes for link in (folder / "fd").iterdir()):
                yield int(folder.name), (folder / "comm").read_text().strip()


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == _LISTENING:
                    yield fields[9]


def _socket_inode(link: Path) -> str:
    with suppress(OSError):
        target = os.readlink(link)
        if target.startswith("socket:["):
            return target[len("socket:[") : -1]
    return ""


class HttpPort:
    """The port that several apiservers share: bound here, so that it outlives each of them. Nobody can
    connect before the first apiserver listens. Life: open -> share_of ... -> close (idempotent)."""

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
        """Call it between open and close."""
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
