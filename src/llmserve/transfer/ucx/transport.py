"""UcxTransport: the contract of transfer/base.py over the two halves."""

import json
import secrets
from collections import deque
from collections.abc import Sequence

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, PeerName, Region, Transfer, TransferState, TransferStatus
from llmserve.transfer.spans import check_batch, coalesce_pairs
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.client import DIAL_SECONDS, Address, Client, UcxTransfer
from llmserve.transfer.ucx.link import Memory
from llmserve.transfer.ucx.loop import Loop
from llmserve.transfer.ucx.server import Server

_CANCEL_SECONDS = 0.02


class UcxTransport:
    """Listens on every network that UCX may use: UCX_NET_DEVICES and UCX_TLS narrow them down."""

    name = "ucx"
    needs_progress = False

    def __init__(self) -> None:
        """Errors: TransportUnavailable with the reason and what to install."""
        self._loop = Loop()
        self._token = secrets.token_hex(16)
        self._server = Server(self._loop, self._token)
        self._client = Client(self._loop)
        self._memory = Memory(())
        self._peers: dict[PeerName, Address] = {}
        self._closed = False

    def register(self, regions: Sequence[Region]) -> None:
        self._check_open()
        memory = Memory(regions)

        def replace() -> None:
            self._loop.drain("the memory was registered anew")
            self._server.serve(memory)

        self._loop.call(replace)
        self._memory = memory

    def describe(self) -> bytes:
        self._check_open()
        fields = {
            "version": wire.VERSION,
            "ucx": self._loop.worker.ucx_version,
            "worker": wire.pack_address(self._loop.worker.address),
            "token": self._token,
            "generation": self._server.generation,
            "regions": self._memory.lengths,
        }
        return json.dumps(fields).encode()

    def connect(self, description: bytes) -> PeerName:
        self._check_open()
        address = _parse(description, self._loop.worker.ucx_version)
        name = PeerName(f"ucx-{address.token}-{address.generation}")
        connection = self._loop.call(lambda: self._client.connect(name, address))
        connection.settled.wait(2 * DIAL_SECONDS)
        if connection.lost:
            raise TransferError(f"ucx: {connection.lost}")
        self._peers[name] = address
        return name

    def disconnect(self, peer: PeerName) -> None:
        if self._peers.pop(peer, None):
            self._loop.post(lambda: self._client.disconnect(peer, "disconnected"))

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        return self._start(wire.Kind.READ, peer, batch)

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        return self._start(wire.Kind.WRITE, peer, batch)

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, UcxTransfer), "a transfer of this transport"
        return transfer.status

    def progress(self) -> None:
        """Nothing to do: the loop's thread sleeps in the kernel until a peer asks."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, UcxTransfer), "a transfer of this transport"
        if not self._closed:
            self._loop.post(transfer.cancel)
        if not transfer.ended.wait(_CANCEL_SECONDS):
            raise TransferError("ucx: the data may still arrive")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.close()

    def _start(self, operation: wire.Kind, name: PeerName, batch: Batch) -> UcxTransfer:
        self._check_open()
        address = self._peers.get(name)
        if address is None:
            raise TransferError(f"ucx: not connected to {name}")
        check_batch(batch, self._memory.lengths, address.region_lengths)
        joined = coalesce_pairs(batch)
        if not len(joined.local.lengths):
            return _nothing(operation, self._memory)
        transfer = UcxTransfer(operation, self._memory, deque(wire.parts(joined)))
        self._loop.post(lambda: self._client.submit(name, address, transfer))
        return transfer

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError("ucx: the transport is closed")


def _nothing(operation: wire.Kind, memory: Memory) -> UcxTransfer:
    transfer = UcxTransfer(operation, memory, deque(), status=TransferStatus(TransferState.DONE))
    transfer.ended.set()
    return transfer


def _parse(description: bytes, ucx_version: str) -> Address:
    """Errors: TransferError for what `describe` cannot have made, or a peer that cannot be understood."""
    try:
        fields = json.loads(description)
        version, ucx = int(fields["version"]), str(fields["ucx"])
        regions = tuple(int(length) for length in fields["regions"])
        worker = wire.unpack_address(fields["worker"])
        address = Address(worker, str(fields["token"]), int(fields["generation"]), regions)
    except (ValueError, KeyError, TypeError) as error:
        raise TransferError(f"ucx: malformed description: {error!r}") from error
    if version != wire.VERSION:
        raise TransferError(f"ucx: the peer speaks version {version} of this transport, not {wire.VERSION}")
    if _release(ucx) != _release(ucx_version):
        raise TransferError(f"ucx: the peer has UCX {ucx}, here is {ucx_version}")
    return address


def _release(version: str) -> list[str]:
    return version.split(".")[:2]
