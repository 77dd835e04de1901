"""How an arena is laid out, and the description by which other processes find it.

First the head: MAGIC and the nonce. Then two words for each page of data: all generations, then all
checksums. This is the front. Then the data, which begins at a multiple of a huge page.

For transports the arena is two regions: DATA_REGION, FRONT_REGION.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.kvstore.blocks import SLOT_ALIGNMENT_BYTES
from llmserve.transfer.shm.identity import ProcessNamespace

HUGE_PAGE_BYTES = 2 << 20
NONCE_BYTES = 32
WORD_BYTES = 8
_MAGIC = b"LLMServe KV 1\0\0\0"
HEAD_BYTES = len(_MAGIC) + NONCE_BYTES
DATA_REGION, FRONT_REGION = 0, 1


@dataclass(frozen=True, slots=True)
class ArenaShape:
    """capacity_bytes: of the data, whole huge pages."""

    capacity_bytes: int

    @property
    def words(self) -> int:
        return self.capacity_bytes // SLOT_ALIGNMENT_BYTES

    @property
    def words_offset(self) -> int:
        return SLOT_ALIGNMENT_BYTES

    @property
    def checksums_offset(self) -> int:
        return self.words_offset + self.words * WORD_BYTES

    @property
    def front_bytes(self) -> int:
        return self.checksums_offset + self.words * WORD_BYTES

    @property
    def data_offset(self) -> int:
        return -(-self.front_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES

    @property
    def total_bytes(self) -> int:
        return self.data_offset + self.capacity_bytes


def head(nonce: str) -> bytes:
    return _MAGIC + nonce.encode()


@dataclass(frozen=True, slots=True)
class ArenaDescription:
    """Where an arena is: file descriptor `fd` of process `pid`. inode and nonce prove that it is that one.
    The nonce also names the arena: no other ever has the same. transports: for who is elsewhere, how each
    describes the arena's regions, by name, in base64; empty: it is reached by this host's processes only."""

    boot_id: str
    pid_namespace: int
    pid: int
    fd: int
    inode: int
    nonce: str
    capacity_bytes: int
    transports: Mapping[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "ArenaDescription":
        """Errors: TransferError for what `to_text` has not made."""
        try:
            description = cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise TransferError(f"kv pool: malformed description: {error}") from error
        texts: tuple[str, ...] = (description.boot_id, description.nonce)
        numbers = (description.pid, description.fd, description.inode, description.capacity_bytes)
        if type(description.transports) is not dict:
            raise TransferError("kv pool: malformed description")
        texts += (*description.transports, *description.transports.values())
        if not (all(type(t) is str for t in texts) and all(type(n) is int and n >= 0 for n in numbers)):
            raise TransferError("kv pool: malformed description")
        return description

    def check_here(self) -> None:
        """Errors: TransferError unless process numbers mean the same here as where it was made."""
        try:
            here = ProcessNamespace.here()
        except TransportUnavailable as error:
            raise TransferError(f"kv pool: {error.message}") from error
        if self.boot_id != here.boot_id:
            raise TransferError("kv pool: it is on another host; use a transport")
        if self.pid_namespace != here.pid_namespace:
            raise TransferError("kv pool: it is in another container of this host; use a transport")
