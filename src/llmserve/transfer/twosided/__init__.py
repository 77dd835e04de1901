"""Reads and writes for networks in which both ends take part: the base of tcp and collective.

Each process listens. A process that wants bytes connects, proves that it is of the cluster
(rpc/wires/handshake.py), sends a hello, and then sends one request at a time on the connection, which a
thread of the owner serves. The transports differ in the carrier, the channel of the bytes themselves: the
same socket, or another channel that is opened beside it.
"""

import json
import secrets
from collections.abc import Callable, Sequence

from llmserve.core.errors import TransferError
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.transfer.base import (
    Batch,
    Memory,
    PeerName,
    Region,
    Transfer,
    TransferState,
    TransferStatus,
    nobody,
)
from llmserve.transfer.spans import check_batch, check_reach
from llmserve.transfer.twosided import wire
from llmserve.transfer.twosided.client import PeerStreams, ServerAddress, TwoSidedTransfer
from llmserve.transfer.twosided.connection import CarrierFactory
from llmserve.transfer.twosided.server import TwoSidedServer


class TwoSidedTransport:
    """host: the address of this machine that peers reach; the system chooses the port. The transport owns the
    carriers, even when the constructor fails."""

    needs_progress = False

    def __init__(
        self, host: str, carriers: CarrierFactory, credentials: Credentials = NO_CREDENTIALS
    ) -> None:
        """Errors: TransportUnavailable."""
        self.name = carriers.name
        self._host = host
        self._carriers, self._credentials = carriers, credentials
        self._token = secrets.token_bytes(wire.TOKEN_BYTES)
        try:
            self._server = TwoSidedServer(host, self._token, carriers, credentials)
        except TransferError:
            carriers.close()
            raise
        self._regions: tuple[Region, ...] = ()
        self._generation = 0
        self._peers: dict[PeerName, PeerStreams] = {}
        self._running: set[TwoSidedTransfer] = set()
        self._on_end: Callable[[], object] = nobody
        self._closed = False

    def reaches(self, memory: Memory) -> bool:
        return self._carriers.reaches(memory)

    def register(self, regions: Sequence[Region]) -> None:
        self._check_open()
        check_reach(self, regions)
        for transfer in list(self._running):
            _cancel(transfer)
        self._regions = tuple(regions)
        for peer in self._peers.values():
            peer.use(self._regions)
        self._generation = self._server.serve(self._regions)

    def describe(self) -> bytes:
        fields = {
            "host": self._host,
            "port": self._server.port,
            "token": self._token.hex(),
            "generation": self._generation,
            "regions": self._lengths,
        }
        return json.dumps(fields).encode()

    def connect(self, description: bytes) -> PeerName:
        self._check_open()
        address = ServerAddress.parse(description, self.name)
        name = PeerName(f"{self.name}-{address.token.hex()}-{address.generation}")
        if name not in self._peers:
            self._peers[name] = PeerStreams(name, address, self._regions, self._carriers, self._credentials)
        return name

    def disconnect(self, peer: PeerName) -> None:
        if connected := self._peers.pop(peer, None):
            connected.close()

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        return self._start(wire.TransferOperation.READ, peer, batch)

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        return self._start(wire.TransferOperation.WRITE, peer, batch)

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, TwoSidedTransfer), "a transfer of this transport"
        status = transfer.status
        if status.state is not TransferState.RUNNING:
            self._running.discard(transfer)
        return status

    def watch(self, on_end: Callable[[], object]) -> bool:
        self._on_end = on_end
        return True

    def progress(self) -> None:
        """Does nothing: the threads of the server sleep in the kernel until a request comes."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, TwoSidedTransfer), "a transfer of this transport"
        self._running.discard(transfer)
        _cancel(transfer)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()
        self._server.close()
        self._carriers.close()

    @property
    def _lengths(self) -> list[int]:
        return [region.length_bytes for region in self._regions]

    def _start(self, operation: wire.TransferOperation, name: PeerName, batch: Batch) -> TwoSidedTransfer:
        self._check_open()
        peer = self._peers.get(name)
        if peer is None:
            raise TransferError(f"{self.name}: not connected to {name}")
        check_batch(batch, self._lengths, peer.address.region_lengths)
        if len(batch.remote.lengths) > wire.MAX_SPANS:
            raise TransferError(f"{self.name}: more than {wire.MAX_SPANS} spans in one batch")
        transfer = TwoSidedTransfer(operation, batch.remote, batch.local, self._on_end)
        self._running.add(transfer)
        peer.submit(transfer)
        return transfer

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError(f"{self.name}: the transport is closed")


def _cancel(transfer: TwoSidedTransfer) -> None:
    assert transfer.stream is not None, "submitted"
    transfer.stream.cancel(transfer)
