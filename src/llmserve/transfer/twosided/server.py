"""The serving half: a listening socket and a thread for each connection."""

import contextlib
import hmac
import logging
import socket
import threading
from collections.abc import Sequence

from llmserve.core.errors import NotAuthenticated, TransferError, TransportUnavailable
from llmserve.core.logs import ScarceWarnings
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.wires.accepting import UnprovenConnections
from llmserve.transfer.base import Region
from llmserve.transfer.spans import check_bounds
from llmserve.transfer.twosided import wire
from llmserve.transfer.twosided.connection import CarrierFactory, PeerConnection

_log = logging.getLogger(__name__)
_HELLO_SECONDS = 5.0
_JOIN_SECONDS = 10.0
_ACCEPT_RETRY_SECONDS = 0.1
_MAX_CONNECTIONS = 1024


class TwoSidedServer:
    """Serves one generation of registered memory at a time. The owner of the transport calls `serve` and
    `close`; each connection runs on a thread of its own."""

    def __init__(self, host: str, token: bytes, carriers: CarrierFactory, credentials: Credentials) -> None:
        """Errors: TransportUnavailable."""
        self._token, self._credentials = token, credentials
        self._carriers = carriers
        self._warnings = ScarceWarnings(_log)
        self._generation = 0
        self._regions: Sequence[Region] = ()
        self._lock = threading.Lock()
        self._lines: dict[PeerConnection, threading.Thread] = {}
        self._unproven = UnprovenConnections[PeerConnection]()
        self._closed = threading.Event()
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family, backlog=128)
        except OSError as error:
            raise TransportUnavailable(f"{carriers.name}: cannot listen on {host}: {error}") from error
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"kv-{carriers.name}-accept", daemon=True)
        self._acceptor.start()

    def serve(self, regions: Sequence[Region]) -> int:
        """Replaces the memory and returns its generation. When this returns the old memory is no longer
        touched: the connected peers have lost their connections."""
        with self._lock:
            self._generation += 1
            self._regions = regions
        self._drop_lines()
        return self._generation

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(_JOIN_SECONDS)
        self._listener.close()
        self._drop_lines()

    def _drop_lines(self) -> None:
        with self._lock:
            dropped = dict(self._lines)
        for line in dropped:
            line.hang_up()
        for thread in dropped.values():
            thread.join(_JOIN_SECONDS)
        with self._lock:
            self._forget_ended()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError:
                if self._closed.wait(_ACCEPT_RETRY_SECONDS):
                    return
                continue  # no file descriptor is left, or the peer gave up
            line = PeerConnection(connection)
            if self._closed.is_set() or not self._admit(line, address[0]):
                line.close()

    def _admit(self, line: PeerConnection, address: str) -> bool:
        """Returns False when there are too many connections already, or no thread is left for this one."""
        name = f"kv-{self._carriers.name}-serve"
        thread = threading.Thread(target=self._run, args=(line,), name=name, daemon=True)
        with self._lock:
            self._forget_ended()
            if len(self._lines) >= _MAX_CONNECTIONS:
                return False
            try:
                thread.start()
            except RuntimeError as error:
                self._warnings.warning("%s: a connection was refused: %s", self._carriers.name, error)
                return False
            dropped = self._unproven.add(line, address)
            self._lines[line] = thread
        if dropped is not None:
            dropped.hang_up()
        return True

    def _forget_unproven(self, line: PeerConnection) -> None:
        with self._lock:
            self._unproven.remove(line)

    def _forget_ended(self) -> None:
        """The caller holds the lock. A thread does not remove itself: `close` must find it to join it."""
        ended = [line for line, thread in self._lines.items() if not thread.is_alive()]
        for line in ended:
            del self._lines[line]

    def _run(self, line: PeerConnection) -> None:
        try:
            wire.tune(line.socket)
            line.secure(self._credentials, server=True)
            self._forget_unproven(line)
            lengths = self._accept_peer(line)
            while True:
                self._answer(line, lengths)
        except (TransferError, NotAuthenticated) as error:
            self._warnings.warning("%s: a connection ended: %s", self._carriers.name, error)
        except OSError:
            pass  # the peer has left, and knows what it has not received
        finally:
            self._forget_unproven(line)
            line.close()

    def _accept_peer(self, line: PeerConnection) -> Sequence[int]:
        """Opens the carrier and returns the lengths of the regions that it serves."""
        line.socket.settimeout(_HELLO_SECONDS)
        token, generation = wire.receive_hello(line.socket)
        with self._lock:
            current, regions = self._generation, self._regions
        is_ours = hmac.compare_digest(token, self._token)
        if not is_ours or generation != current:
            reason = "its memory was registered anew" if is_ours else "this is another process"
            wire.refuse(line.socket, reason)
            raise TransferError(f"a peer has an old description: {reason}")
        wire.accept(line.socket)
        line.open(self._carriers, regions, rank=1)
        line.socket.settimeout(None)
        return [region.length_bytes for region in regions]

    def _answer(self, line: PeerConnection, lengths: Sequence[int]) -> None:
        operation, spans = wire.receive_request(line.socket)
        line.carrier.settle()
        try:
            check_bounds(spans, lengths, "remote")
        except TransferError as error:
            wire.refuse(line.socket, error.message)
            raise
        if operation is wire.TransferOperation.READ:
            wire.accept(line.socket, more=self._carriers.same_socket and spans.total_bytes > 0)
            line.carrier.send(spans)
            return
        line.carrier.receive(spans, lambda: wire.accept(line.socket), _agreed)
        wire.accept(line.socket)


def _agreed() -> None:
    """Does nothing: a client that writes has nothing to refuse."""
