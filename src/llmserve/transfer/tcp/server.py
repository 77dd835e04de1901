"""The serving half: a listening socket and a thread for each connected peer."""

import contextlib
import logging
import socket
import threading

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.spans import check_bounds
from llmserve.transfer.tcp import wire
from llmserve.transfer.tcp.memory import Memory, receive, send

_log = logging.getLogger(__name__)
_GREETING_SECONDS = 5.0
_JOIN_SECONDS = 10.0
_ACCEPT_RETRY_SECONDS = 0.1
_MAX_CONNECTIONS = 1024


class TcpServer:
    """Serves one generation of registered memory at a time. Threads: `serve` and `close` are
    called by the owner of the transport; connections run on their own threads."""

    def __init__(self, host: str, token: bytes) -> None:
        self._token = token
        self._generation = 0
        self._memory = Memory(())
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._closed = threading.Event()
        try:
            self._listener = socket.create_server((host, 0), backlog=128)
        except OSError as error:
            raise TransportUnavailable(f"tcp: cannot listen on {host}: {error}") from error
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="kv-tcp-accept", daemon=True)
        self._acceptor.start()

    def serve(self, memory: Memory) -> int:
        """Replaces the memory; returns its generation. When it returns the old memory is no longer
        touched: the peers that were connected have lost their connection."""
        with self._lock:
            self._generation += 1
            self._memory = memory
        self._drop_connections()
        return self._generation

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(_JOIN_SECONDS)
        self._listener.close()
        self._drop_connections()

    def _drop_connections(self) -> None:
        with self._lock:
            dropped = dict(self._connections)
        for connection in dropped:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in dropped.values():
            thread.join(_JOIN_SECONDS)
        with self._lock:
            self._forget_ended()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closed.wait(_ACCEPT_RETRY_SECONDS):
                    return
                continue  # out of file descriptors, or the peer gave up
            thread = threading.Thread(target=self._run, args=(connection,), name="kv-tcp-serve", daemon=True)
            with self._lock:
                self._forget_ended()
                if admitted := not self._closed.is_set() and len(self._connections) < _MAX_CONNECTIONS:
                    self._connections[connection] = thread
                    thread.start()
            if not admitted:
                connection.close()

    def _forget_ended(self) -> None:
        """Under the lock. A thread does not forget itself: `close` must find it to join it."""
        ended = [connection for connection, thread in self._connections.items() if not thread.is_alive()]
        for connection in ended:
            del self._connections[connection]

    def _run(self, connection: socket.socket) -> None:
        try:
            wire.tune(connection)
            memory = self._greet(connection)
            while True:
                self._answer(connection, memory)
        except TransferError as error:
            _log.warning("tcp transfer refused: %s", error)
        except OSError:
            pass  # the peer has left; it knows what it has not received
        finally:
            connection.close()

    def _greet(self, connection: socket.socket) -> Memory:
        connection.settimeout(_GREETING_SECONDS)
        token, generation = wire.receive_greeting(connection)
        with self._lock:
            current, memory = self._generation, self._memory
        if token != self._token or generation != current:
            reason = "this is another process" if token != self._token else "its memory was registered anew"
            wire.refuse(connection, reason)
            raise TransferError(f"a peer has an old description: {reason}")
        wire.accept(connection)
        connection.settimeout(None)
        return memory

    def _answer(self, connection: socket.socket, memory: Memory) -> None:
        operation, spans = wire.receive_request(connection)
        try:
            check_bounds(spans, memory.lengths, "remote")
        except TransferError as error:
            wire.refuse(connection, error.message)
            return
        if operation is wire.Operation.READ:
            wire.accept(connection, more=spans.total_bytes > 0)
            send(connection, memory.vector(spans))
            return
        wire.accept(connection)
        receive(connection, memory.vector(spans))
        wire.accept(connection)
