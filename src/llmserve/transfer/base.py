"""The contract of a transport: bytes from registered memory of one process to that of another.

One process makes one transport of each kind, registers its memory once, gives its description to
its peers (out of band, see engines/kv_transfer), and from then on any peer may read and write
that memory. One thread owns a transport object: no method may be called from two threads.
No method blocks for longer than a connection takes (`connect`), or than a copy (`poll`, `progress`).

Implementations: nixl, ucx, collective (gloo, nccl), shm, tcp. All pass
tests/conformance/test_transport*.py between real processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NewType, Protocol

import numpy as np
import numpy.typing as npt

PeerName = NewType("PeerName", str)
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Region:
    """Registered memory: `length_bytes` bytes from the virtual `address`, which the owner keeps alive
    until the transport is closed."""

    address: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Spans:
    """n pieces of registered memory, as three int64 arrays of shape [n]: the index of the region
    in the order of registration, the offset in it and the length, both in bytes."""

    regions: Int64Array
    offsets: Int64Array
    lengths: Int64Array

    @property
    def total_bytes(self) -> int:
        return int(self.lengths.sum())

    def cut(self, pieces: slice) -> "Spans":
        return Spans(self.regions[pieces], self.offsets[pieces], self.lengths[pieces])


@dataclass(frozen=True, slots=True)
class Batch:
    """Piece i of local and piece i of remote have the same length."""

    local: Spans
    remote: Spans


class TransferState(Enum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TransferStatus:
    state: TransferState
    reason: str = ""  # of a failure, for the log and the metrics


class Transfer(Protocol):
    """What read and write return: opaque, one batch in flight."""


class Transport(Protocol):
    """Errors of every method: TransportUnavailable (constructor), TransferError."""

    name: str
    needs_progress: bool  # False: it serves peers on sleeping threads of its own; progress does nothing

    def register(self, regions: Sequence[Region]) -> None:
        """Makes memory reachable for peers. A second call replaces the regions of the first: this
        side's transfers in flight fail, and peers must connect again with a new description. What
        they still read through the old one fails or is undefined; owners fence it with leases."""

    def describe(self) -> bytes:
        """All that a peer needs to connect, opaque to others."""

    def connect(self, description: bytes) -> PeerName:
        """Idempotent for one description. Errors: TransferError when the peer is not there."""

    def disconnect(self, peer: PeerName) -> None:
        """Takes no new transfers with a peer, which may be dead, and forgets it when those in flight
        have ended; they may end as FAILED. Idempotent."""

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        """Starts copying batch.remote of the peer into batch.local. Errors: TransferError when
        it cannot be submitted, or when a piece lies outside registered memory (either side; the
        far side's refusal may also come as a FAILED poll)."""

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        """Starts copying batch.local into batch.remote of the peer."""

    def poll(self, transfer: Transfer) -> TransferStatus:
        """Where it stands. After DONE or FAILED the transfer is forgotten: do not poll it again."""

    def progress(self) -> None:
        """Serves peers. If needs_progress, called about every millisecond while peers connect, read
        or write here."""

    def cancel(self, transfer: Transfer) -> None:
        """Gives up on a transfer. When it returns, local memory is no longer touched by it and it is
        forgotten. Errors: TransferError when it may still be touched: call again a little later."""

    def close(self) -> None:
        """Idempotent. Transfers in flight end as FAILED on both sides."""
