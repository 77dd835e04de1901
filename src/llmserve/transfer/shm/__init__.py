"""The transport between processes of one host: the kernel copies once, directly from the memory of one
process to that of the other. It does not matter who allocated the memory.

The system calls are process_vm_readv and process_vm_writev. The alternatives are worse: /proc/PID/mem copies
twice, at half the speed or less (measured), and mapping shared memory over registered memory would take it
away from its allocator. Several threads are no faster than one where memory is the limit.

The transport is one-sided: threads of the peer do nothing. So leases keep the owner from reusing memory under
a reader, and descriptions must come from trusted peers.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import Batch, Memory, PeerName, Region, Transfer, TransferState, TransferStatus
from llmserve.transfer.shm.identity import Beacon, ProcessNamespace, ShmPeer
from llmserve.transfer.shm.memory import Copy, ProcessMemory, copies
from llmserve.transfer.spans import RegionTable, check_batch, check_reach, coalesce_pairs

_AT_ONCE_BYTES = 4 << 20  # less is copied before a thread could wake up and report its end
_CANCEL_SECONDS = 0.02
_STOP_SECONDS = 10.0

_JOIN_SECONDS = 10.0


@dataclass(eq=False, slots=True)
class ShmTransfer:
    """One batch. steps: makes one system call for each item, under the lock."""

    steps: Iterator[None]
    status: TransferStatus = field(default_factory=lambda: TransferStatus(TransferState.RUNNING))
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Runs the transfer to its end, on the thread of the caller."""
        while self._advance():
            pass

    def stop(self, reason: str, patience_seconds: float) -> None:
        """Ends the transfer as FAILED, unless it has ended before. When this returns, memory is no longer
        touched. Errors: TransferError when the current system call does not return within
        patience_seconds."""
        self._stopped = True
        if not self._lock.acquire(timeout=patience_seconds):
            raise TransferError("shm: a copy is still under way")
        try:
            if self.status.state is TransferState.RUNNING:
                self.status = TransferStatus(TransferState.FAILED, f"shm: {reason}")
        finally:
            self._lock.release()

    def _advance(self) -> bool:
        """Makes one step and says whether there are more."""
        with self._lock:
            if self._stopped:
                return False
            self.status = self._step()
            return self.status.state is TransferState.RUNNING

    def _step(self) -> TransferStatus:
        try:
            next(self.steps)
        except StopIteration:
            return TransferStatus(TransferState.DONE)
        except TransferError as error:
            return TransferStatus(TransferState.FAILED, error.message)
        return self.status


class CopyThread:
    """Runs transfers one after the other on a thread that sleeps while there are none."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[ShmTransfer | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kv-shm-copy", daemon=True)
        self._thread.start()

    def submit(self, transfer: ShmTransfer) -> None:
        self._queue.put(transfer)

    def close(self) -> None:
        """Ends the thread. The caller has stopped the transfers."""
        self._queue.put(None)
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while (transfer := self._queue.get()) is not None:
            transfer.run()


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
        self._copier = CopyThread()
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
        return self._start(batch, self._reading(known, self._copies(known, batch)))

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        known = self._checked(peer, batch)
        return self._start(batch, self._writing(known, self._copies(known, batch)))

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, ShmTransfer), "a transfer of this transport"
        status = transfer.status
        if status.state is not TransferState.RUNNING:
            self._running.discard(transfer)
        return status

    def progress(self) -> None:
        """Does nothing: peers need no help."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, ShmTransfer), "a transfer of this transport"
        transfer.stop("cancelled", _CANCEL_SECONDS)
        self._running.discard(transfer)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._beacon.clear()
        try:
            self._stop_all("the transport was closed")
        finally:
            self._copier.close()
            self._peers.clear()

    # -- inside

    def _start(self, batch: Batch, steps: Iterator[None]) -> ShmTransfer:
        transfer = ShmTransfer(steps)
        if batch.local.total_bytes <= _AT_ONCE_BYTES:
            transfer.run()
        else:
            self._running.add(transfer)
            self._copier.submit(transfer)
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
        for copy in calls:
            self._memory.read(peer.pid, copy)
            yield
        peer.verify(self._memory)

    def _writing(self, peer: ShmPeer, calls: Iterator[Copy]) -> Iterator[None]:
        """Verifies before each call, too, so that no other process's memory is written."""
        for copy in calls:
            peer.verify(self._memory)
            self._memory.write(peer.pid, copy)
            yield
        peer.verify(self._memory)

    def _stop_all(self, reason: str) -> None:
        for transfer in self._running:
            transfer.stop(reason, _STOP_SECONDS)
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
