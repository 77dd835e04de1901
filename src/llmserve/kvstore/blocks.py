"""What the store is about: blocks, their parts, the slots of the DRAM tier, and what workers ask for.

The key of a block in the store is its hash. Where the block was computed with an adapter, the adapter's label
follows the hash. A key travels with its block through every tier, record and archive, so each block names its
adapter wherever it is, and blocks of the model itself cost nothing more.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from llmserve.core.ids import AdapterDigest, BlockHash, LeaseId, TenantId
from llmserve.kvstore.tiers.base import BlobKey

# A process that writes or reads: one incarnation of a worker, or the store itself.
PoolUser = NewType("PoolUser", str)
STORE_USER = PoolUser("kvmanager")
NO_LEASE = LeaseId("")
SLOT_ALIGNMENT_BYTES = 4096
_PART_NUMBER_BYTES = 2
_HASH_BYTES = 32
_LABEL_BYTES = 16


def adapter_label(adapter: AdapterDigest) -> bytes:
    """The first half of an adapter's digest; empty for the model itself. Errors: ValueError for no digest."""
    return bytes.fromhex(adapter)[:_LABEL_BYTES]


def store_key(block: BlockHash, label: bytes) -> BlockHash:
    """The key of a block in the store. label: of the adapter that it was computed with."""
    return BlockHash(block + label)


def hash_in(key: BlockHash) -> BlockHash:
    """The hash of the block with this key."""
    return BlockHash(key[:_HASH_BYTES])


def label_in(key: BlockHash) -> bytes:
    """The label of the adapter that a block was computed with; empty for the model itself."""
    return key[_HASH_BYTES:]


def part_key(block: BlockHash, part: int) -> BlobKey:
    """Name of the part of a block that one rank holds."""
    return BlobKey(block + part.to_bytes(_PART_NUMBER_BYTES, "big"))


def block_of(key: BlobKey) -> tuple[BlockHash, int]:
    """The block and the number of the part that a `part_key` names."""
    return BlockHash(key[:-_PART_NUMBER_BYTES]), int.from_bytes(key[-_PART_NUMBER_BYTES:], "big")


@dataclass(frozen=True, slots=True)
class Slot:
    """`length_bytes` bytes at `offset` of the arena's data.

    generation: number of this use; no two uses of a slot have the same, and none has 0. checksum: xxh3
    (64 bits) of a committed part."""

    offset: int = 0
    length_bytes: int = 0
    generation: int = 0
    checksum: int = 0

    @property
    def page(self) -> int:
        """The slot's first page, whose words in the arena's front are the slot's."""
        return self.offset // SLOT_ALIGNMENT_BYTES


# The bytes of a slot in this process.
ViewOf = Callable[[Slot], memoryview]
# The bytes at an offset of the arena, of a length.
View = Callable[[int, int], memoryview]


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """part_bytes: length of each part. shapes: text form of each part's shape (`formats.BlockShape`); empty
    when unknown."""

    key: BlockHash
    parent: BlockHash | None
    tenant: TenantId
    part_bytes: tuple[int, ...]
    shapes: tuple[str, ...] = ()

    def shape(self, part: int) -> str:
        return self.shapes[part] if self.shapes else ""


# A tier calls it with blocks that it holds from now on (True), or no longer. Called often; it must not wait.
HeldChanged = Callable[[Iterable[BlockHash], bool], object]


def nobody_asks(keys: Iterable[BlockHash], held: bool) -> None:
    """The HeldChanged of a tier that nobody follows."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A worker's question about one prompt.

    keys: hashes of its full blocks in order, all in one namespace. have_blocks: number of the first blocks
    that the worker's device holds. part_bytes, shapes: see StoredBlock. compute_seconds: time that the
    worker takes to compute a block; none is brought up more slowly. block_tokens: for counters only; 0 when
    unknown."""

    user: PoolUser
    tenant: TenantId
    keys: Sequence[BlockHash]
    part_bytes: tuple[int, ...]
    have_blocks: int = 0
    compute_seconds: float = float("inf")
    load: bool = True
    store: bool = True
    block_tokens: int = 0
    shapes: tuple[str, ...] = ()

    def block(self, at: int) -> StoredBlock:
        parent = self.keys[at - 1] if at else None
        return StoredBlock(self.keys[at], parent, self.tenant, self.part_bytes, self.shapes)


@dataclass(frozen=True, slots=True)
class BlockSlots:
    """index: of the block in the prompt. slots: one for each part."""

    index: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The answer to a Prompt.

    loads: leased blocks in order, from have_blocks on without a gap. stores: reserved blocks, to be
    committed. lease_id: NO_LEASE without loads."""

    lease_id: LeaseId = NO_LEASE
    loads: tuple[BlockSlots, ...] = ()
    stores: tuple[BlockSlots, ...] = ()


@dataclass(frozen=True, slots=True)
class PartFill:
    """A part that a rank has written into a slot. checksum: 0 when the rank noted it beside the slot."""

    block: BlockHash
    part: int
    generation: int
    checksum: int


class ReserveOutcome(StrEnum):
    RESERVED = "reserved"
    PRESENT = "present"  # the block is stored already
    BUSY = "busy"  # another user is writing it
    FULL = "full"  # there is no room until other blocks leave
    TOO_LARGE = "too_large"  # there is never room for this size


class CommitOutcome(StrEnum):
    STORED = "stored"
    LATE = "late"  # the reservation had ended: the block is not stored
