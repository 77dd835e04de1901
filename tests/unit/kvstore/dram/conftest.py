"""A table over an array of this process, with time that only tests move."""

from dataclasses import dataclass

import numpy as np
import pytest

from llmserve.core.clock import VirtualClock
from llmserve.kvstore.blocks import Fill, PoolUser, Slot, Want
from llmserve.kvstore.dram.slabs import SlabMap
from llmserve.kvstore.dram.table import PoolTable
from llmserve.kvstore.tiers.base import BlobKey

UNIT = 64 << 10
UNITS = 4
WRITER, READER = PoolUser("writer/1"), PoolUser("reader/1")


@dataclass
class Pool:
    table: PoolTable
    clock: VirtualClock

    def reserve(self, key: str, length: int = UNIT, seconds: float = 10, user: PoolUser = WRITER) -> Slot:
        [reserved] = self.table.reserve(user, [want(key, length)], seconds)
        return reserved.slot

    def store(self, key: str, length: int = UNIT) -> Slot:
        slot = self.reserve(key, length)
        self.table.commit([fill(key, slot)])
        return slot

    def word(self, slot: Slot) -> int:
        return int(self.table.generations[slot.offset // 4096])


def want(key: str, length: int = UNIT) -> Want:
    return Want(BlobKey(key.encode()), length)


def fill(key: str, slot: Slot, checksum: int = 7) -> Fill:
    return Fill(BlobKey(key.encode()), slot.generation, checksum)


def keys(names: str) -> list[BlobKey]:
    return [BlobKey(name.encode()) for name in names]


@pytest.fixture
def pool() -> Pool:
    clock = VirtualClock()
    words = np.zeros(UNITS * UNIT // 4096, np.int64)
    return Pool(PoolTable(SlabMap(UNITS * UNIT, UNIT), words, clock, quarantine_seconds=60), clock)
