"""A DRAM tier over an array of this process, with time that only tests move."""

from dataclasses import dataclass

import numpy as np
import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import BlockHash, LeaseId, TenantId
from llmserve.kvstore.blocks import CommitOutcome, PartFill, PoolUser, ReserveOutcome, Slot, StoredBlock
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.kvstore.dram.slots import SlotPool
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.eviction import TierIndex
from llmserve.transfer.base import Int64Array
from tests.support.lru_policy import LruPolicy

UNIT = 64 << 10
UNITS = 4
WRITER, READER = PoolUser("writer/1"), PoolUser("reader/1")
TENANT = TenantId("red")
NO_SLOT = Slot()


@dataclass
class Pool:
    """Blocks are named by text; those of `reserve` and `store` have one part."""

    dram: DramTier
    words: Int64Array
    clock: VirtualClock

    @property
    def used_bytes(self) -> int:
        return self.dram.slots.slabs.used_bytes

    def reserve(self, key: str, length: int = UNIT, seconds: float = 10, user: PoolUser = WRITER) -> Slot:
        """NO_SLOT when it is refused."""
        _, slots = self.dram.reserve(user, block(key, length), seconds)
        return slots[0] if slots else NO_SLOT

    def outcome(self, key: str, *lengths: int, user: PoolUser = WRITER) -> ReserveOutcome:
        return self.dram.reserve(user, block(key, *lengths or (UNIT,)), 5)[0]

    def commit(self, key: str, slot: Slot, checksum: int = 7, part: int = 0) -> CommitOutcome:
        return self.dram.commit(PartFill(named(key), part, slot.generation, checksum))[0]

    def store(self, key: str, length: int = UNIT) -> Slot:
        slot = self.reserve(key, length)
        self.commit(key, slot)
        return slot

    def lease(self, *keys: str, seconds: float = 5, user: PoolUser = READER) -> tuple[LeaseId, list[Slot]]:
        lease_id, slots = self.dram.lease(user, list(map(named, keys)), seconds)
        return lease_id, [one for (one,) in slots]

    def holds(self, key: str) -> bool:
        return self.dram.holds(named(key))

    def remove(self, key: str) -> None:
        self.dram.drop(named(key))

    def word(self, slot: Slot) -> int:
        return int(self.words[slot.offset // 4096])


def named(key: str) -> BlockHash:
    return BlockHash(key.encode())


def block(key: str, *part_bytes: int) -> StoredBlock:
    return StoredBlock(named(key), None, TENANT, part_bytes)


def make_pool(slabs: SlabMap, words: Int64Array, index_bytes: int = 1 << 40) -> Pool:
    """index_bytes: so many that slots run out before the index does."""
    clock = VirtualClock()
    index = TierIndex(index_bytes, LruPolicy, clock)
    return Pool(DramTier(SlotPool(slabs, words), index, clock, quarantine_seconds=60), words, clock)


@pytest.fixture
def pool() -> Pool:
    return make_pool(SlabMap(UNITS * UNIT, UNIT), np.zeros(UNITS * UNIT // 4096, np.int64))
