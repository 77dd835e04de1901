"""The process that a description names, and the proof that it is that process.

A process number alone proves nothing: it may belong to another container or machine, or to a later program.
So a process keeps the digest of its description, the beacon, at an address that the description names, for as
long as the description holds. A peer that reads the digest there has found that process, still running that
program, with that memory registered.
"""

import ctypes
import json
import os
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import PeerName
from llmserve.transfer.description import Count, malformed, parse_fields
from llmserve.transfer.shm.memory import ProcessMemory
from llmserve.transfer.spans import RegionTable

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class ProcessNamespace:
    """The host and pid namespace in which process numbers are comparable."""

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
    """Makes the descriptions of this process and holds the digest of the latest one."""

    def __init__(self, place: ProcessNamespace) -> None:
        self._place = place
        self._digest = ctypes.create_string_buffer(_DIGEST_BYTES)
        self.description = b""

    def publish(self, table: RegionTable) -> None:
        """Makes a new description. The one before no longer holds."""
        fields = {
            "boot_id": self._place.boot_id,
            "pid_namespace": self._place.pid_namespace,
            "pid": os.getpid(),
            "beacon": ctypes.addressof(self._digest),
            "addresses": table.addresses.tolist(),
            "lengths": table.lengths,
            "nonce": secrets.token_hex(16),
        }
        self.description = json.dumps(fields).encode()
        self._digest.raw = sha256(self.description).digest()

    def clear(self) -> None:
        """Ends the latest description. None holds then."""
        self._digest.raw = bytes(_DIGEST_BYTES)


class _ShmFields(msgspec.Struct):
    boot_id: str
    pid_namespace: Count
    pid: Annotated[int, Meta(gt=0, lt=1 << 31)]
    beacon: Count
    addresses: tuple[Count, ...]
    lengths: tuple[Count, ...]


@dataclass(frozen=True, slots=True)
class ShmPeer:
    """A process as its description names it."""

    name: PeerName
    place: ProcessNamespace
    pid: int
    table: RegionTable
    beacon: int
    digest: bytes

    @classmethod
    def parse(cls, description: bytes) -> "ShmPeer":
        """Errors: TransferError for a description that no Beacon has made."""
        fields = parse_fields(_ShmFields, description, "shm")
        place = ProcessNamespace(fields.boot_id, fields.pid_namespace)
        try:
            table = RegionTable.parse(fields.addresses, fields.lengths)
        except ValueError as error:
            raise malformed("shm", error) from error
        digest, name = sha256(description).digest(), f"shm-{fields.pid}"
        peer = cls(PeerName(f"{name}-{digest.hex()}"), place, fields.pid, table, fields.beacon, digest)
        peer._check_numbers()
        return peer

    def verify(self, memory: ProcessMemory) -> None:
        """Checks that the description holds. Bytes that were read before this returns came from the described
        memory. Errors: TransferError."""
        if memory.fetch(self.pid, self.beacon, _DIGEST_BYTES) != self.digest:
            raise TransferError(
                f"shm: process {self.pid} is not the one that was described, or has closed, or registered "
                "its memory anew"
            )

    def _check_numbers(self) -> None:
        starts = (*self.table.addresses.tolist(), self.beacon)
        sizes = (*self.table.lengths, _DIGEST_BYTES)
        if any(start + size >= 1 << 63 for start, size in zip(starts, sizes, strict=True)):
            raise TransferError("shm: malformed description")
