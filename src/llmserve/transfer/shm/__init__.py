"""The transport between processes of one host: the kernel copies once, directly from the memory of one
process to that of the other. It does not matter who allocated the memory.

The system calls are process_vm_readv and process_vm_writev. The alternatives are worse: /proc/PID/mem copies
twice, at half the speed or less (measured), and mapping shared memory over registered memory would take it
away from its allocator. Several threads are no faster than one where memory is the limit, and to wake one
takes longer than to copy a MiB. So `read`, `write` and `poll` copy themselves, one system call each time.

The transport is one-sided: threads of the peer do nothing. So leases keep the owner from reusing memory under
a reader, and descriptions must come from trusted peers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import Batch, Memory, PeerName, Region, Transfer, TransferState, TransferStatus
from llmserve.transfer.shm.identity import Beacon, ProcessNamespace, ShmPeer
from llmserve.transfer.shm.memory import Copy, ProcessMemory, copies
from llmserve.transfer.spans import RegionTable, check_batch, check_reach, coalesce_pairs


@dataclass(eq=False, slots=True)
class ShmTransfer:
    """One batch. steps: makes one system call for each item."""

    steps: Iterator[None]
    status: TransferStatus = field(default_factory=lambda: TransferStatus(TransferState.RUNNING))

    def advance(self) -> None:
        """Makes the next system call, unless the transfer has ended."""
        if self.status.state is not TransferState.RUNNING:
            return
        try:
            next(self.steps)
        except StopIteration:
            self.status = TransferStatus(TransferState.DONE)
        except TransferError as error:
            self.status = TransferStatus(TransferState.FAILED, error.message)

    def stop(self, reason: str) -> None:
        """Ends the transfer as FAILED, unless it has ended before."""
        if self.status.state is TransferState.RUNNING:
            self.status = TransferStatus(TransferState.FAILED, f"shm: {reason}")


class ShmTransport:
    name = "shm"
    needs_progress = False

    def __init__(self) -> None:
        """Errors: TransportUnavailable with the reason."""
        self._place = ProcessNamespace.here()
        self._memory = ProcessMemory()
        self._table = RegionTable.of(())
        self._beacon = Beacon(self._place)
        self._beacon.publish(self._table)
        self._check_usable()
        self._peers: dict[PeerName, ShmPeer] = {}
        self._running: set[ShmTransfer] = set()
        self._closed = False

    def reaches(self, memory: Memory) -> bool:
        return memory.on_host

    def register(self, regions: Sequence[Region]) -> None:
        self._check_open()
        check_reach(self, regions)
        self._beacon.clear()
        self._stop_all("the memory was registered anew")
        self._table = RegionTable.of(regions)
        self._beacon.publish(self._table)

    def describe(self) -> bytes:
        self._check_open()
        return self._beacon.description

    def connect(self, description: bytes) -> PeerName:
        self._check_open()
        peer = ShmPeer.parse(description)
        self._place.check_same(peer.place)
        peer.verify(self._memory)
        self._peers[peer.name] = peer
        return peer.name

    def disconnect(self, peer: PeerName) -> None:
        self._peers.pop(peer, None)

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        known = self._checked(peer, batch)
        return self._start(self._reading(known, self._copies(known, batch)))

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        known = self._checked(peer, batch)
        return self._start(self._writing(known, self._copies(known, batch)))

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, ShmTransfer), "a transfer of this transport"
        transfer.advance()
        if transfer.status.state is not TransferState.RUNNING:
            self._running.discard(transfer)
        return transfer.status

    def watch(self, on_end: Callable[[], object]) -> bool:
        """Polling is what copies."""
        return False

    def progress(self) -> None:
        """Does nothing: peers need no help."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, ShmTransfer), "a transfer of this transport"
        transfer.stop("cancelled")
        self._running.discard(transfer)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._beacon.clear()
        self._stop_all("the transport was closed")
        self._peers.clear()

    # -- inside

    def _start(self, steps: Iterator[None]) -> ShmTransfer:
        transfer = ShmTransfer(steps)
        transfer.advance()
        if transfer.status.state is TransferState.RUNNING:
            self._running.add(transfer)
        return transfer

    def _checked(self, name: PeerName, batch: Batch) -> ShmPeer:
        self._check_open()
        peer = self._peers.get(name)
        if peer is None:
            raise TransferError(f"shm: not connected to {name}")
        check_batch(batch, self._table.lengths, peer.table.lengths)
        return peer

    def _copies(self, peer: ShmPeer, batch: Batch) -> Iterator[Copy]:
        joined = coalesce_pairs(batch)
        local, remote = self._table.starts(joined.local), peer.table.starts(joined.remote)
        return copies(local, remote, joined.local.lengths)

    def _reading(self, peer: ShmPeer, calls: Iterator[Copy]) -> Iterator[None]:
        for number, copy in enumerate(calls):
            if number:
                yield
            self._memory.read(peer.pid, copy)
        peer.verify(self._memory)

    def _writing(self, peer: ShmPeer, calls: Iterator[Copy]) -> Iterator[None]:
        """Verifies before each call, too, so that no other process's memory is written."""
        for number, copy in enumerate(calls):
            if number:
                yield
            peer.verify(self._memory)
            self._memory.write(peer.pid, copy)
        peer.verify(self._memory)

    def _stop_all(self, reason: str) -> None:
        for transfer in self._running:
            transfer.stop(reason)
        self._running.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError("shm: the transport is closed")

    def _check_usable(self) -> None:
        """Reads the own beacon, because a sandbox may forbid the system calls. Errors:
        TransportUnavailable."""
        try:
            ShmPeer.parse(self._beacon.description).verify(self._memory)
        except TransferError as error:
            raise TransportUnavailable(f"shm: {error.message}") from error
