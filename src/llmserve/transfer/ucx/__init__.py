"""UCX by way of UCXX, the maintained successor of ucx-py (docs/decisions/0008-ucxx-and-tagged-messages.md).

The owner of the memory takes part: a peer sends it small control messages, and it checks the bounds and sends
or receives the bytes as tagged messages, directly from and to registered memory. Remote memory access is not
used: UCXX 0.52 does not offer it in Python (ucp_get and ucp_put are C++ only). On one host, where it would be
faster, `nixl` and `shm` are available (10 GB/s against 3, measured together); over TCP, UCX emulates it in
software and the owner takes part anyway. Active messages would cost a further copy, because their receiver
cannot choose the target.

A thread serves, and sleeps in the kernel on UCX's event descriptor, even while data moves. The other choices
of this package follow from what UCX 1.21 does when something ends:

- A matched receive cannot be taken back. So a batch goes in parts, two at a time: `cancel` waits for those,
and closes the connection if they do not end soon; afterwards nothing is written any more. - That holds for
rendezvous and for messages of one fragment. Eager messages of several fragments never end when their sender
dies, and are written to after a close: RNDV_THRESH is below every fragment's size. - Without its registration
cache UCX crashes when a peer dies in a rendezvous (null pointer in ucs_rcache_region_invalidate):
RCACHE_ENABLE=y, which refuses to start where that cannot work. - UCX crashes when one socket's event closes
another socket of the same batch (uct_tcp_iface_handle_events): TCP_MAX_POLL=1 makes batches of one. - Shared
memory does not notice that a peer has died (not within 10 s, with a keepalive of 1 s; TCP within 2 ms):
TLS=^sm. - The other end does not notice that an endpoint was closed: both ends send BYE, and wait for it. -
UCX crashes when an end closes while its socket is full and then reads that the other end has closed too (the
read frees the connection, and uct_tcp_iface_handle_events goes on with it): an end says BYE after its data in
flight, and closes earlier only if the peer does not answer for seconds. No end waits for messages of the
peer before it says BYE: two ends whose copies fail would wait for each other. - A garbled address of a worker
ends the process: addresses carry a checksum.

All pieces of a part are one message, which UCX gathers and scatters itself (pieces.py). A part that is too
short for rendezvous is packed by its sender: UCX would make a fragment of every six pieces of it.

Memory of a GPU is staged: a part passes through a slot of pinned host memory (staged.py). ucxx also takes
objects with `__cuda_array_interface__`, which has not been tried.
"""

import json
import secrets
from collections import deque
from collections.abc import Callable, Sequence

from llmserve.core.errors import TransferError
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
from llmserve.transfer.devices import Staging
from llmserve.transfer.spans import check_batch, check_reach, coalesce_pairs
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.client import DIAL_SECONDS, UcxClient, UcxTransfer, WorkerAddress
from llmserve.transfer.ucx.link import PartMemory, RegionViews
from llmserve.transfer.ucx.loop import UcxLoop
from llmserve.transfer.ucx.server import UcxServer
from llmserve.transfer.ucx.staged import PartSlots, StagedRegions

_CANCEL_SECONDS = 0.02


class UcxTransport:
    """Listens on every network that UCX may use: UCX_NET_DEVICES and UCX_TLS narrow them down. staging:
    reaches the memory of its device; None: host memory only."""

    name = "ucx"
    needs_progress = False

    def __init__(self, staging: Staging | None = None) -> None:
        """Errors: TransportUnavailable with the reason and what to install."""
        self._slots = PartSlots(staging) if staging else None
        self._loop = UcxLoop()
        self._token = secrets.token_hex(16)
        self._server = UcxServer(self._loop, self._token)
        self._client = UcxClient(self._loop)
        self._memory: PartMemory = RegionViews(())
        self._peers: dict[PeerName, WorkerAddress] = {}
        self._on_end: Callable[[], object] = nobody
        self._closed = False

    def reaches(self, memory: Memory) -> bool:
        return memory.on_host or (self._slots is not None and self._slots.copies.memory == memory)

    def register(self, regions: Sequence[Region]) -> None:
        self._check_open()
        check_reach(self, regions)
        memory = self._views(regions)

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
        address = WorkerAddress.parse(description, self._loop.worker.ucx_version)
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
        return self._start(wire.MessageKind.READ, peer, batch)

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        return self._start(wire.MessageKind.WRITE, peer, batch)

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, UcxTransfer), "a transfer of this transport"
        return transfer.status

    def watch(self, on_end: Callable[[], object]) -> bool:
        self._on_end = on_end
        return True

    def progress(self) -> None:
        """Does nothing: the loop's thread sleeps in the kernel until a request comes."""

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

    def _views(self, regions: Sequence[Region]) -> PartMemory:
        if self._slots is None or all(region.memory.on_host for region in regions):
            return RegionViews(regions)
        return StagedRegions(regions, self._slots)

    def _start(self, operation: wire.MessageKind, name: PeerName, batch: Batch) -> UcxTransfer:
        self._check_open()
        address = self._peers.get(name)
        if address is None:
            raise TransferError(f"ucx: not connected to {name}")
        check_batch(batch, self._memory.lengths, address.region_lengths)
        joined = coalesce_pairs(batch)
        if not len(joined.local.lengths):
            return _nothing(operation, self._memory)
        transfer = UcxTransfer(operation, self._memory, deque(wire.parts(joined)), self._on_end)
        self._loop.post(lambda: self._client.submit(name, address, transfer))
        return transfer

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError("ucx: the transport is closed")


def _nothing(operation: wire.MessageKind, memory: PartMemory) -> UcxTransfer:
    transfer = UcxTransfer(operation, memory, deque(), status=TransferStatus(TransferState.DONE))
    transfer.ended.set()
    return transfer
