"""The asking half: streams to one peer, each a thread with a connection."""

import contextlib
import queue
import socket
import threading
from dataclasses import dataclass, field

from llmserve.core.errors import TransferError
from llmserve.transfer.base import PeerName, Spans, TransferState, TransferStatus
from llmserve.transfer.tcp import wire
from llmserve.transfer.tcp.memory import Memory, receive, send

_DIAL_SECONDS = 2.0
_JOIN_SECONDS = 10.0
_MAX_STREAMS = 4


@dataclass(frozen=True, slots=True)
class Address:
    """What a description says."""

    host: str
    port: int
    token: bytes
    generation: int
    region_lengths: tuple[int, ...]


@dataclass(eq=False, slots=True)
class TcpTransfer:
    """One batch. `status` is written by its stream only; `ended` is set after the last touch of
    local memory."""

    operation: wire.Operation
    remote: Spans
    memory: Memory
    local: Spans
    stream: "Stream | None" = None
    cancelled: bool = False
    status: TransferStatus = field(default_factory=lambda: TransferStatus(TransferState.RUNNING))
    ended: threading.Event = field(default_factory=threading.Event)

    def end(self, state: TransferState, reason: str = "") -> None:
        self.status = TransferStatus(state, reason)
        self.ended.set()


class Peer:
    """The streams to one peer. A batch goes to a stream that is idle, to a new one while there are
    few, else to the one with the shortest queue."""

    def __init__(self, name: PeerName, address: Address) -> None:
        """Blocks until the peer has accepted a connection. Errors: TransferError."""
        self.name = name
        self.address = address
        self._streams = [Stream(address, dial(address))]

    def submit(self, transfer: TcpTransfer) -> None:
        stream = min(self._streams, key=lambda stream: stream.load)
        if stream.load and len(self._streams) < _MAX_STREAMS:
            stream = Stream(self.address, None)
            self._streams.append(stream)
        transfer.stream = stream
        stream.submit(transfer)

    def close(self) -> None:
        for stream in self._streams:
            stream.stop()
        for stream in self._streams:
            stream.join()


class Stream:
    """Runs its transfers one after the other. A connection that breaks fails the transfer that
    used it; the next one dials again."""

    def __init__(self, address: Address, connection: socket.socket | None) -> None:
        self._address = address
        self._connection = connection
        self._queue: queue.SimpleQueue[TcpTransfer | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._current: TcpTransfer | None = None
        self._stopping = False
        self.load = 0  # transfers not ended; written under the lock
        self._thread = threading.Thread(target=self._run, name="kv-tcp-stream", daemon=True)
        self._thread.start()

    def submit(self, transfer: TcpTransfer) -> None:
        with self._lock:
            self.load += 1
        self._queue.put(transfer)

    def cancel(self, transfer: TcpTransfer) -> None:
        """When it returns the transfer touches no local memory. Errors: TransferError if its thread
        does not let go (never seen; the memory must then be taken for lost)."""
        with self._lock:
            transfer.cancelled = True
            if self._current is not transfer:
                return
            self._hang_up()
        if not transfer.ended.wait(_JOIN_SECONDS):
            raise TransferError("tcp: a cancelled transfer does not end")

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._hang_up()
        self._queue.put(None)

    def join(self) -> None:
        self._thread.join(_JOIN_SECONDS)

    def _hang_up(self) -> None:
        """Wakes the thread out of any socket call. Under the lock."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while (transfer := self._queue.get()) is not None:
            failure = self._attempt(transfer)
            with self._lock:  # a cancel that came too late has hung up all the same
                self._current = None
                self.load -= 1
            if failure or transfer.cancelled:
                self._drop_connection()
            transfer.end(TransferState.FAILED if failure else TransferState.DONE, failure)
        self._drop_connection()

    def _attempt(self, transfer: TcpTransfer) -> str:
        """Why it failed; empty when it did not."""
        try:
            self._perform(transfer)
        except (TransferError, OSError) as error:
            return f"tcp: {error}"
        return ""

    def _perform(self, transfer: TcpTransfer) -> None:
        if transfer.cancelled or self._stopping:
            raise TransferError("cancelled")
        connection = self._connection or dial(self._address)
        with self._lock:
            self._connection = connection
            if transfer.cancelled or self._stopping:
                raise TransferError("cancelled")
            self._current = transfer
        wire.send_request(connection, transfer.operation, transfer.remote)
        vector = transfer.memory.vector(transfer.local)  # while the peer does the same
        wire.receive_reply(connection)
        if transfer.operation is wire.Operation.READ:
            receive(connection, vector)
            return
        send(connection, vector)
        wire.receive_reply(connection)

    def _drop_connection(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def dial(address: Address) -> socket.socket:
    """A greeted connection. Errors: TransferError."""
    connection: socket.socket | None = None
    try:
        connection = socket.create_connection((address.host, address.port), timeout=_DIAL_SECONDS)
        wire.tune(connection)
        wire.send_greeting(connection, address.token, address.generation)
        wire.receive_reply(connection)
        connection.settimeout(None)
    except (OSError, TransferError) as error:
        if connection is not None:
            connection.close()
        raise TransferError(f"tcp: {address.host}:{address.port}: {error}") from error
    return connection
