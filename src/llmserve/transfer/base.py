"""The contract of a transport: bytes from registered memory of one process to that of another.

A process makes one transport of each kind, registers its memory once, and gives its description to its peers
by another channel (engines/kv_transfer). From then on any peer may read and write that memory. One thread
owns a transport: no method may be called from two threads. `connect` blocks no longer than a connection
takes, and `poll` and `progress` no longer than a copy.

Implementations: nixl, ucx, collective (gloo, nccl), shm, tcp. All pass tests/conformance/test_transport*.py
between real processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NewType, Protocol

import numpy as np
import numpy.typing as npt

PeerName = NewType("PeerName", str)
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Memory:
    """A kind of memory. device: the ordinal of a GPU, as this process counts them; None for host memory."""

    device: int | None = None

    @property
    def on_host(self) -> bool:
        return self.device is None

    def __str__(self) -> str:
        return "host memory" if self.device is None else f"memory of GPU {self.device}"


HOST = Memory()


@dataclass(frozen=True, slots=True)
class Region:
    """Registered memory: `length_bytes` bytes from the virtual `address`. The owner keeps it alive until the
    transport is closed. This process must not dereference an address of a GPU's memory."""

    address: int
    length_bytes: int
    memory: Memory = HOST


@dataclass(frozen=True, slots=True)
class Spans:
    """n pieces of registered memory, as three int64 arrays of shape [n]: the index of the region in the order
    of registration, and the offset in it and the length in bytes."""

    regions: Int64Array
    offsets: Int64Array
    lengths: Int64Array

    @property
    def total_bytes(self) -> int:
        return int(self.lengths.sum())

    def cut(self, pieces: slice) -> "Spans":
        return Spans(self.regions[pieces], self.offsets[pieces], self.lengths[pieces])

    def take(self, pieces: Int64Array) -> "Spans":
        return Spans(self.regions[pieces], self.offsets[pieces], self.lengths[pieces])


@dataclass(frozen=True, slots=True)
class Batch:
    """One transfer. Piece i of local and piece i of remote have the same length."""

    local: Spans
    remote: Spans


class TransferState(Enum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TransferStatus:
    state: TransferState
    reason: str = ""  # why it failed, for the log and the metrics


def nobody() -> None:
    """Is told of the ends of transfers that nobody watches."""


class Transfer(Protocol):
    """One batch in flight, opaque to callers. `read` and `write` return it."""


class Transport(Protocol):
    """Errors of every method: TransportUnavailable (constructor), TransferError."""

    name: str
    needs_progress: bool  # False: threads of its own serve peers, and `progress` does nothing

    def reaches(self, memory: Memory) -> bool:
        """Says whether regions of this memory may be registered. Peers may register another kind."""

    def register(self, regions: Sequence[Region]) -> None:
        """Makes memory accessible to peers. A second call replaces the regions: this side's transfers in
        flight fail, and peers must connect again with a new description. A read through the old description
        fails or returns undefined bytes; owners prevent that with leases. Errors: TransferError, also for
        memory that it does not reach."""

    def describe(self) -> bytes:
        """Returns what a peer needs to connect, opaque to callers."""

    def connect(self, description: bytes) -> PeerName:
        """Connects to a peer. Idempotent for one description. Errors: TransferError when the peer is gone."""

    def disconnect(self, peer: PeerName) -> None:
        """Ends the connection to a peer, which may be dead, once the transfers in flight have ended; they may
        end as FAILED. New transfers are refused at once. Idempotent."""

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        """Starts copying batch.remote of the peer into batch.local. Errors: TransferError when the transfer
        cannot be submitted, or when a piece lies outside registered memory on either side. A refusal of the
        peer may also appear as a FAILED poll."""

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        """Starts copying batch.local into batch.remote of the peer."""

    def poll(self, transfer: Transfer) -> TransferStatus:
        """Returns the state of a transfer. After DONE or FAILED the transfer must not be polled again."""

    def watch(self, on_end: Callable[[], object]) -> bool:
        """Lets `on_end` be called, on any thread, when a transfer has ended that could not end at once. It is
        called before the first transfer starts. Returns False when ends are only seen by polling."""

    def progress(self) -> None:
        """Serves peers. If needs_progress, the owner calls this about every millisecond while peers connect,
        read or write."""

    def cancel(self, transfer: Transfer) -> None:
        """Gives up a transfer. When this returns, the transfer no longer touches local memory and must not be
        used again. Errors: TransferError when it may still touch memory: call again a little later."""

    def close(self) -> None:
        """Closes the transport. Transfers in flight end as FAILED on both sides. Idempotent."""
