"""The requesting half: streams to one peer, each a thread with a connection."""

import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from llmserve.core.addresses import join_address
from llmserve.core.errors import NotAuthenticated, TransferError
from llmserve.rpc.credentials import Credentials
from llmserve.transfer.base import PeerName, Region, Spans, TransferState, TransferStatus
from llmserve.transfer.description import Count, malformed, parse_fields
from llmserve.transfer.twosided import wire
from llmserve.transfer.twosided.connection import Carrier, CarrierFactory, PeerConnection

_DIAL_SECONDS = 2.0
_JOIN_SECONDS = 10.0
_RUNNING, _DONE = TransferStatus(TransferState.RUNNING), TransferStatus(TransferState.DONE)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The contents of a description."""

    host: str
    port: int
    token: bytes
    generation: int
    region_lengths: tuple[int, ...]

    @classmethod
    def parse(cls, description: bytes, transport: str) -> "ServerAddress":
        """Errors: TransferError for a description that no `describe` has made."""
        fields = parse_fields(_ServerFields, description, transport)
        try:
            token = bytes.fromhex(fields.token)
        except ValueError as error:
            raise malformed(transport, error) from error
        return cls(fields.host, fields.port, token, fields.generation, fields.regions)


class _ServerFields(msgspec.Struct):
    host: str
    port: Annotated[int, Meta(gt=0, lt=1 << 16)]
    token: Annotated[str, Meta(min_length=2 * wire.TOKEN_BYTES, max_length=2 * wire.TOKEN_BYTES)]
    generation: Count
    regions: tuple[Count, ...]


@dataclass(eq=False, slots=True)
class TwoSidedTransfer:
    """One batch. Only its stream writes `status`, and then calls `on_end`, after the last access to local
    memory."""

    operation: wire.TransferOperation
    remote: Spans
    local: Spans
    on_end: Callable[[], object]
    stream: "TransferStream | None" = None
    cancelled: bool = False
    status: TransferStatus = _RUNNING

    def end(self, failure: str) -> None:
        """failure: why it failed; empty when it did not."""
        self.status = TransferStatus(TransferState.FAILED, failure) if failure else _DONE
        self.on_end()


class PeerStreams:
    """The streams to one peer, for the given regions of this process. A batch goes to an idle stream, or to a
    new one while there are few, or to the one with the shortest queue."""

    def __init__(
        self,
        name: PeerName,
        address: ServerAddress,
        regions: Sequence[Region],
        carriers: CarrierFactory,
        credentials: Credentials,
    ) -> None:
        """Blocks until the peer has accepted a connection. Errors: TransferError."""
        self.name = name
        self.address = address
        self._regions = regions
        self._carriers, self._credentials = carriers, credentials
        self._streams = [self._stream(dial(address, regions, carriers, credentials))]

    def submit(self, transfer: TwoSidedTransfer) -> None:
        stream = min(self._streams, key=lambda stream: stream.load)
        if stream.load and len(self._streams) < self._carriers.connections:
            with suppress(TransferError):
                stream = self._stream()
                self._streams.append(stream)
        transfer.stream = stream
        stream.submit(transfer)

    def use(self, regions: Sequence[Region]) -> None:
        """Replaces the regions. Transfers in flight end as FAILED. When this returns the former regions are
        no longer touched."""
        self.close()
        self._regions = regions
        self._streams = [self._stream()]

    def close(self) -> None:
        for stream in self._streams:
            stream.stop()
        for stream in self._streams:
            stream.join()

    def _stream(self, line: PeerConnection | None = None) -> "TransferStream":
        """Errors: TransferError when no thread is left for it; the line is closed then."""
        try:
            return TransferStream(self.address, self._regions, self._carriers, self._credentials, line)
        except RuntimeError as error:
            if line is not None:
                line.close()
            raise TransferError(f"{self._carriers.name}: {error}") from error


class TransferStream:
    """Runs its transfers one after the other. A connection that breaks fails the transfer that used it, and
    the next transfer connects again."""

    def __init__(
        self,
        address: ServerAddress,
        regions: Sequence[Region],
        carriers: CarrierFactory,
        credentials: Credentials,
        line: PeerConnection | None,
    ) -> None:
        self._address = address
        self._regions = regions
        self._carriers, self._credentials = carriers, credentials
        self._line = line
        self._queue: queue.SimpleQueue[TwoSidedTransfer | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)  # is notified when `_current` has left local memory
        self._current: TwoSidedTransfer | None = None
        self._stopping = False
        self.load = 0  # transfers that have not ended; written under the lock
        self._thread = threading.Thread(target=self._run, name=f"kv-{carriers.name}-stream", daemon=True)
        self._thread.start()

    def submit(self, transfer: TwoSidedTransfer) -> None:
        with self._lock:
            self.load += 1
        self._queue.put(transfer)

    def cancel(self, transfer: TwoSidedTransfer) -> None:
        """When this returns the transfer touches no local memory. Errors: TransferError if its thread does
        not end it. That was never seen; the memory must then count as lost."""
        with self._lock:
            transfer.cancelled = True
            if self._current is not transfer:
                return
            self._hang_up()
            if not self._left.wait_for(lambda: self._current is not transfer, _JOIN_SECONDS):
                raise TransferError(f"{self._carriers.name}: a cancelled transfer does not end")

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._hang_up()
        self._queue.put(None)

    def join(self) -> None:
        self._thread.join(_JOIN_SECONDS)

    def _hang_up(self) -> None:
        """The caller holds the lock."""
        if self._line is not None:
            self._line.hang_up()

    def _run(self) -> None:
        while (transfer := self._queue.get()) is not None:
            failure = self._attempt(transfer)
            with self._lock:  # a cancel that came too late has hung up as well
                self._current = None
                self.load -= 1
                self._left.notify_all()
            if failure or transfer.cancelled:
                self._drop_line()
            transfer.end(failure)
        self._drop_line()

    def _attempt(self, transfer: TwoSidedTransfer) -> str:
        """Returns why the transfer failed; empty when it did not."""
        try:
            self._perform(transfer)
        except TransferError as error:
            return error.message
        except OSError as error:
            return f"{self._carriers.name}: {error}"
        return ""

    def _perform(self, transfer: TwoSidedTransfer) -> None:
        if transfer.cancelled or self._stopping:
            raise TransferError("cancelled")
        line = self._line or dial(self._address, self._regions, self._carriers, self._credentials)
        with self._lock:
            self._line = line
            if transfer.cancelled or self._stopping:
                raise TransferError("cancelled")
            self._current = transfer

        def ask() -> None:
            wire.send_request(line.socket, transfer.operation, transfer.remote)

        def confirm() -> None:
            wire.receive_reply(line.socket)

        if transfer.operation is wire.TransferOperation.READ:
            line.carrier.receive(transfer.local, ask, confirm)
            return
        ask()
        if self._carriers.same_socket:
            _send_at_once(line.carrier, transfer.local, confirm)
        else:
            confirm()
            line.carrier.send(transfer.local)
        confirm()
        line.carrier.settle()

    def _drop_line(self) -> None:
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.close()


def _send_at_once(carrier: Carrier, spans: Spans, confirm: Callable[[], None]) -> None:
    """Sends the bytes right after their request, without waiting for its answer. A peer that refuses says
    why and hangs up."""
    try:
        carrier.send(spans)
    except OSError:
        confirm()
        raise
    confirm()


def dial(
    address: ServerAddress, regions: Sequence[Region], carriers: CarrierFactory, credentials: Credentials
) -> PeerConnection:
    """Returns a connection that the peer has accepted. Errors: TransferError."""
    line: PeerConnection | None = None
    try:
        line = PeerConnection(socket.create_connection((address.host, address.port), timeout=_DIAL_SECONDS))
        wire.tune(line.socket)
        line.secure(credentials, server=False)
        line.socket.settimeout(_DIAL_SECONDS)
        wire.send_hello(line.socket, address.token, address.generation)
        wire.receive_reply(line.socket)
        line.open(carriers, regions, rank=0)
        line.socket.settimeout(carriers.answer_seconds)
    except (OSError, TransferError, NotAuthenticated) as error:
        if line is not None:
            line.close()
        place = join_address(address.host, address.port)
        raise TransferError(f"{carriers.name}: {place}: {error}") from error
    return line
