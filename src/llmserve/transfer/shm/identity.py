"""Who a description speaks of, and the proof of it.

A process number alone proves nothing: it may be that of another container or machine, or of a program
that came later. So a process that describes itself keeps the digest of that description, its beacon,
at an address that the description names, for as long as the description holds. Whoever finds the
digest there has found that process, still running that program, with that memory registered.
"""

import ctypes
import json
import os
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import PeerName
from llmserve.transfer.shm.memory import ProcessMemory, Table

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class ProcessNamespace:
    """Where process numbers are comparable."""

    boot_id: str
    pid_namespace: int

    @classmethod
    def here(cls) -> "ProcessNamespace":
        """Errors: TransportUnavailable."""
        try:
            return cls(_BOOT_ID.read_text().strip(), _PID_NAMESPACE.stat().st_ino)
        except OSError as error:
            raise TransportUnavailable(f"shm: this system does not tell where it is: {error}") from error

    @property
    def text(self) -> str:
        return f"{self.boot_id} {self.pid_namespace}"

    def check_same(self, other: "ProcessNamespace") -> None:
        """Errors: TransferError."""
        if other.boot_id != self.boot_id:
            raise TransferError("shm: the peer is on another host")
        if other.pid_namespace != self.pid_namespace:
            raise TransferError("shm: the peer is in another pid namespace (another container) of this host")


class Beacon:
    """Makes this side's descriptions and vouches for the latest one."""

    def __init__(self, place: ProcessNamespace) -> None:
        self._place = place
        self._digest = ctypes.create_string_buffer(_DIGEST_BYTES)
        self.description = b""

    def light(self, table: Table) -> None:
        """A new description; the one before no longer holds."""
        fields = {
            "boot_id": self._place.boot_id,
            "pid_namespace": self._place.pid_namespace,
            "pid": os.getpid(),
            "beacon": ctypes.addressof(self._digest),
            "addresses": table.addresses,
            "lengths": table.lengths,
            "nonce": secrets.token_hex(16),
        }
        self.description = json.dumps(fields).encode()
        self._digest.raw = sha256(self.description).digest()

    def clear(self) -> None:
        """No description holds."""
        self._digest.raw = bytes(_DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class ShmPeer:
    """A process as its description tells."""

    name: PeerName
    place: ProcessNamespace
    pid: int
    table: Table
    beacon: int
    digest: bytes

    @classmethod
    def parse(cls, description: bytes) -> "ShmPeer":
        """Errors: TransferError for what no Beacon has made."""
        try:
            fields = json.loads(description)
            place = ProcessNamespace(str(fields["boot_id"]), int(fields["pid_namespace"]))
            pid, beacon = int(fields["pid"]), int(fields["beacon"])
            table = Table(tuple(map(int, fields["addresses"])), tuple(map(int, fields["lengths"])))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise TransferError(f"shm: malformed description: {error!r}") from error
        digest = sha256(description).digest()
        peer = cls(PeerName(f"shm-{pid}-{digest.hex()}"), place, pid, table, beacon, digest)
        peer._check_numbers()
        return peer

    def verify(self, memory: ProcessMemory) -> None:
        """The description holds: what was read before this returned is what it promised.
        Errors: TransferError."""
        if memory.fetch(self.pid, self.beacon, _DIGEST_BYTES) != self.digest:
            raise TransferError(
                f"shm: process {self.pid} is not the one that was described, or has closed, or registered "
                "its memory anew"
            )

    def _check_numbers(self) -> None:
        addresses, lengths = self.table.addresses, self.table.lengths
        starts, sizes = (*addresses, self.beacon), (*lengths, _DIGEST_BYTES)
        fits = len(starts) == len(sizes) and all(
            start >= 0 and size >= 0 and start + size < 1 << 63
            for start, size in zip(starts, sizes, strict=True)
        )
        if not (fits and 0 < self.pid < 1 << 31):
            raise TransferError("shm: malformed description")
