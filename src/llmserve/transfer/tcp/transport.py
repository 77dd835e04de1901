"""TcpTransport: the contract of transfer/base.py over the two halves."""

import json
import secrets
from collections.abc import Sequence

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, PeerName, Region, Transfer, TransferState, TransferStatus
from llmserve.transfer.spans import check_batch
from llmserve.transfer.tcp import wire
from llmserve.transfer.tcp.client import Address, Peer, TcpTransfer
from llmserve.transfer.tcp.memory import Memory
from llmserve.transfer.tcp.server import TcpServer


class TcpTransport:
    """host: the address of this machine that peers reach; the port is the system's choice."""

    name = "tcp"
    needs_progress = False

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._token = secrets.token_bytes(wire.TOKEN_BYTES)
        self._server = TcpServer(host, self._token)
        self._memory = Memory(())
        self._generation = 0
        self._peers: dict[PeerName, Peer] = {}
        self._running: set[TcpTransfer] = set()
        self._closed = False

    def register(self, regions: Sequence[Region]) -> None:
        self._check_open()
        for transfer in list(self._running):
            _cancel(transfer)
        self._memory = Memory(regions)
        self._generation = self._server.serve(self._memory)

    def describe(self) -> bytes:
        fields = {
            "host": self._host,
            "port": self._server.port,
            "token": self._token.hex(),
            "generation": self._generation,
            "regions": self._memory.lengths,
        }
        return json.dumps(fields).encode()

    def connect(self, description: bytes) -> PeerName:
        self._check_open()
        address = _parse(description)
        name = PeerName(f"tcp-{address.token.hex()}-{address.generation}")
        if name not in self._peers:
            self._peers[name] = Peer(name, address)
        return name

    def disconnect(self, peer: PeerName) -> None:
        if connected := self._peers.pop(peer, None):
            connected.close()

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        return self._start(wire.Operation.READ, peer, batch)

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        return self._start(wire.Operation.WRITE, peer, batch)

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, TcpTransfer), "a transfer of this transport"
        status = transfer.status
        if status.state is not TransferState.RUNNING:
            self._running.discard(transfer)
        return status

    def progress(self) -> None:
        """Nothing to do: the threads of the server sleep in the kernel until a peer asks."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, TcpTransfer), "a transfer of this transport"
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

    def _start(self, operation: wire.Operation, name: PeerName, batch: Batch) -> TcpTransfer:
        self._check_open()
        peer = self._peers.get(name)
        if peer is None:
            raise TransferError(f"tcp: not connected to {name}")
        check_batch(batch, self._memory.lengths, peer.address.region_lengths)
        if len(batch.remote.lengths) > wire.MAX_SPANS:
            raise TransferError(f"tcp: more than {wire.MAX_SPANS} spans in one batch")
        transfer = TcpTransfer(operation, batch.remote, self._memory, batch.local)
        self._running.add(transfer)
        peer.submit(transfer)
        return transfer

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError("tcp: the transport is closed")


def _cancel(transfer: TcpTransfer) -> None:
    assert transfer.stream is not None, "submitted"
    transfer.stream.cancel(transfer)


def _parse(description: bytes) -> Address:
    """Errors: TransferError for what `describe` cannot have made."""
    try:
        fields = json.loads(description)
        token = bytes.fromhex(fields["token"])
        regions = tuple(int(length) for length in fields["regions"])
        address = Address(str(fields["host"]), int(fields["port"]), token, int(fields["generation"]), regions)
    except (ValueError, KeyError, TypeError) as error:
        raise TransferError(f"tcp: malformed description: {error!r}") from error
    if len(token) != wire.TOKEN_BYTES or address.generation < 0 or not 0 < address.port < 65536:
        raise TransferError("tcp: malformed description")
    return address
