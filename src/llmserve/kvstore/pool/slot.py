"""The words of the pool: slots, and what became of each request about one."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from llmserve.kvstore.tiers.base import BlobKey

# A process that writes or reads: one incarnation of a worker, or the manager itself.
PoolUser = NewType("PoolUser", str)

SLOT_ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Slot:
    """`length_bytes` bytes at `offset` of the arena's data. No two uses of a slot have the same generation;
    0 is that of no slot. checksum: xxh3, 64 bits, of a committed block."""

    offset: int = 0
    length_bytes: int = 0
    generation: int = 0
    checksum: int = 0

    @property
    def page(self) -> int:
        """The first one of it, whose words are its."""
        return self.offset // SLOT_ALIGNMENT_BYTES


NO_SLOT = Slot()


@dataclass(frozen=True, slots=True)
class Want:
    key: BlobKey
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Fill:
    """What a writer has written, or gives up, or a reader found corrupt: names one use of a slot."""

    key: BlobKey
    generation: int
    checksum: int = 0


class ReserveOutcome(StrEnum):
    RESERVED = "reserved"
    PRESENT = "present"  # it is there already: nothing to write
    BUSY = "busy"  # another is writing it
    FULL = "full"  # no slot of this size until others are freed
    TOO_LARGE = "too_large"  # no slot of this size ever


@dataclass(frozen=True, slots=True)
class Reserved:
    outcome: ReserveOutcome
    slot: Slot = NO_SLOT


class CommitOutcome(StrEnum):
    STORED = "stored"
    LATE = "late"  # the reservation had ended: the block is not there


class RemoveOutcome(StrEnum):
    FREED = "freed"
    LATER = "later"  # nobody finds it any more; its slot comes back when the leases on it have ended
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """stored: blocks that can be found. held: their bytes. used: what all slots in use take."""

    stored_blocks: int
    held_bytes: int
    used_bytes: int
    capacity_bytes: int
    filling_blocks: int
    leased_blocks: int
    open_leases: int
    orphan_blocks: int  # of writers that let their reservation end and may still write
