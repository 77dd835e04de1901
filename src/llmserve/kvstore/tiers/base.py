"""The contract of a tier below DRAM: keyed blobs of encoded KV, on a medium that may fail.

A tier keeps bytes and their index; what to keep is decided by its caller (the manager, by the policies
of `kvstore.eviction`), and what the bytes mean by `kvstore.formats`. A key names contents, so a blob is
never overwritten: writing a key that is there changes nothing and is DONE.

One event loop owns a tier; calls may overlap. `holds` and `sizes` answer from memory at once; the others
work in batches on threads of their own or by asynchronous I/O, and never block the loop. Nothing here
raises for trouble of the medium: each blob has an outcome of its own, with the reason in words.
What `read` answers DONE is what was written, bit by bit: every blob carries a checksum. A buffer that is
too short for its blob is FAILED. A call that is cancelled ends when it has let go of the caller's memory.

Two-phase: a blob is found only when its write is DONE, after a crash too. Implementations: `nvme`,
`object`; all pass tests/conformance/test_tier.py, as does the fake in `memory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType, Protocol

# What a blob is stored under: block hash, and the rank that holds this part of the block. Up to 64 bytes.
BlobKey = NewType("BlobKey", bytes)

# Offsets, lengths and addresses of direct I/O. Buffers that begin at multiples of it, and are padded to
# one, are written and read without a copy; others may cost one.
ALIGNMENT_BYTES = 4096


class TierOutcome(StrEnum):
    DONE = "done"
    MISSING = "missing"  # not there, or no longer: a miss
    CORRUPT = "corrupt"  # there, but not what was written; it is forgotten
    FULL = "full"  # no room: neither here nor on the medium
    FAILED = "failed"  # the medium did not do it, after retries where these make sense


@dataclass(frozen=True, slots=True)
class BlobResult:
    outcome: TierOutcome
    reason: str = ""  # in words, for the log, when not DONE


@dataclass(frozen=True, slots=True)
class Blob:
    """To write: data is not changed by the caller until the write has ended. header (up to 1,024 bytes)
    says how to decode it and comes back from `read`."""

    key: BlobKey
    header: bytes
    data: memoryview


@dataclass(frozen=True, slots=True)
class ReadTarget:
    """To read: `buffer` has room for `sizes` bytes of the key; it holds garbage unless DONE."""

    key: BlobKey
    buffer: memoryview


@dataclass(frozen=True, slots=True)
class ReadResult(BlobResult):
    header: bytes = b""
    length_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """held: live blobs as stored; used: what they take on the medium, with garbage not yet reclaimed."""

    blobs: int
    held_bytes: int
    used_bytes: int
    capacity_bytes: int


class Tier(Protocol):
    name: str

    async def open(self) -> None:
        """Finds what an earlier process left, as far as it is whole. Errors: StartFailed when the medium
        cannot be used at all (with the path or URL, and what to do)."""

    def holds(self, keys: Sequence[BlobKey]) -> list[bool]: ...

    def sizes(self, keys: Sequence[BlobKey]) -> list[int]:
        """Bytes of data as stored; 0 for what is not there."""

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]: ...

    async def read(self, targets: Sequence[ReadTarget]) -> list[ReadResult]: ...

    async def remove(self, keys: Sequence[BlobKey]) -> None:
        """What is not there is ignored. Its room comes back at once or a little later (`usage`)."""

    async def settle_removals(self) -> BlobResult:
        """Returns when no later process finds what was removed before the call. FAILED: the medium did not
        take that down, and the next call tries it again."""

    def held(self) -> list[tuple[BlobKey, int]]:
        """Key and bytes, as stored, of every blob that counts in `usage`: what was written first comes
        first, as far as the medium knows. For the caller's books, after `open`."""

    def usage(self) -> Usage: ...

    async def aclose(self) -> None:
        """Idempotent; safe after a failed open. What is in flight ends first. What was DONE is there
        for the next process."""
