"""The words of the store: slots of the DRAM tier, blocks, and what workers ask about them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from llmserve.core.ids import BlockHash, LeaseId, TenantId
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


_PART_BYTES = 2  # of the number of a part


def part_key(block: BlockHash, part: int) -> BlobKey:
    """Of the part of a block that one rank holds."""
    return BlobKey(block + part.to_bytes(_PART_BYTES, "big"))


def block_of(key: BlobKey) -> tuple[BlockHash, int]:
    """The block and the number of the part."""
    return BlockHash(key[:-_PART_BYTES]), int.from_bytes(key[-_PART_BYTES:], "big")


# Told of blocks that a tier holds from now on (True), or no longer. Called at once and often.
HeldChanged = Callable[[Iterable[BlockHash], bool], object]


def nobody_asks(keys: Iterable[BlockHash], held: bool) -> None:
    """A HeldChanged."""


NO_LEASE = LeaseId("")
STORE_USER = PoolUser("kvmanager")  # the store itself
ViewOf = Callable[[Slot], memoryview]  # its memory in the pool


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """shapes: of the bytes of each part, as text (`formats.BlockShape`); none: not known."""

    key: BlockHash
    parent: BlockHash | None
    tenant: TenantId
    part_bytes: tuple[int, ...]
    shapes: tuple[str, ...] = ()

    def shape(self, part: int) -> str:
        return self.shapes[part] if self.shapes else ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """keys: of its full blocks, in order, all in one namespace. have_blocks: how many of the first the
    asker's device holds. part_bytes: of the part of a block that each rank holds; shapes: of these bytes, as
    text; none: not known. compute_seconds: what one block costs the asker to compute; nothing is brought up
    more slowly than that."""

    user: PoolUser
    tenant: TenantId
    keys: Sequence[BlockHash]
    part_bytes: tuple[int, ...]
    have_blocks: int = 0
    compute_seconds: float = float("inf")
    load: bool = True
    store: bool = True
    block_tokens: int = 0  # for what is counted only; 0: not told
    shapes: tuple[str, ...] = ()

    def block(self, at: int) -> StoredBlock:
        parent = self.keys[at - 1] if at else None
        return StoredBlock(self.keys[at], parent, self.tenant, self.part_bytes, self.shapes)


@dataclass(frozen=True, slots=True)
class BlockSlots:
    """index: of the block in the prompt. slots: one for each rank."""

    index: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """loads: leased, in order, from have_blocks on without a gap. stores: reserved, to be committed. lease_id
    is NO_LEASE without loads."""

    lease_id: LeaseId = NO_LEASE
    loads: tuple[BlockSlots, ...] = ()
    stores: tuple[BlockSlots, ...] = ()


@dataclass(frozen=True, slots=True)
class PartFill:
    """What a rank has written into a slot."""

    block: BlockHash
    part: int
    generation: int
    checksum: int
