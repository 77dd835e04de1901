"""A rank's copies between the memory of a device and the pool: what they wait for, and what ends with them.

Kernels, marks and copies of the device end late: a job that does not wait for the engine's kernels stores old
bytes, or loads into blocks that these still write.
"""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import xxhash
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
)

from llmserve.core.errors import TransferError
from llmserve.engines.store.links import LocatedBlock
from llmserve.engines.store.worker import StoreSlots, StoreWorker
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.client.access import RemoteAccess
from llmserve.kvstore.dram.serving import PoolServer
from llmserve.transfer.devices import Bytes, Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.engine import SharedTransfers

LAYERS, BLOCKS, PAGE_BYTES = 4, 6, 16 << 10
BLOCK_BYTES = LAYERS * PAGE_BYTES
LATE = 0.02


@dataclass
class Rank:
    """memory: the device's, as kernels see it, shape [LAYERS, BLOCKS, PAGE_BYTES]."""

    arena: Arena
    described: str
    device: FakeDevice
    memory: Bytes
    worker: StoreWorker
    jobs: int = 0

    def slots(self, count: int) -> list[Slot]:
        made = [Slot(at * BLOCK_BYTES, BLOCK_BYTES, at + 1) for at in range(count)]
        for slot in made:
            self.arena.generations[slot.page] = slot.generation
        return made

    def filled(self, count: int) -> list[Slot]:
        """Slots with a block of ones, of twos and so on."""
        for at, slot in enumerate(self.slots(count)):
            self.arena.view(slot.offset, BLOCK_BYTES)[:] = bytes([at + 1]) * BLOCK_BYTES
        return [
            replace(slot, checksum=xxhash.xxh3_64_intdigest(self.arena.view(slot.offset, BLOCK_BYTES)))
            for slot in self.slots(count)
        ]

    def located(self, slots: list[Slot]) -> StoreSlots:
        return StoreSlots(LocatedBlock("kvmanager-0", self.described, (slot,)) for slot in slots)

    def submit_store(self, slots: list[Slot]) -> None:
        """The first blocks of the memory."""
        self.jobs += 1
        blocks = list(range(len(slots)))
        assert self.worker.submit_store(
            self.jobs, GPULoadStoreSpec(blocks, [len(slots)], [0]), self.located(slots)
        )

    def submit_load(self, slots: list[Slot]) -> None:
        self.jobs += 1
        blocks = list(range(len(slots)))
        assert self.worker.submit_load(
            self.jobs, self.located(slots), GPULoadStoreSpec(blocks, [len(slots)], [0])
        )

    def end(self) -> tuple[set[int], set[int]]:
        """Waits for the last job. The loads and blocks that failed."""
        self.worker.wait({self.jobs})
        assert [result.job_id for result in self.worker.get_finished()] == [self.jobs]
        return self.worker.take_failed()

    def published(self, slots: list[Slot]) -> list[bool]:
        """Whether each slot has the checksum of its bytes beside it, without which nobody commits it."""
        digests = [xxhash.xxh3_64_intdigest(self.arena.view(slot.offset, BLOCK_BYTES)) for slot in slots]
        return [self.arena.checksum(slot) == one for slot, one in zip(slots, digests, strict=True)]

    def values(self) -> list[int]:
        """Of each block, which has only equal bytes."""
        assert all(len(set(self.memory[:, block].ravel().tolist())) == 1 for block in range(BLOCKS))
        return [int(self.memory[0, block, 0]) for block in range(BLOCKS)]


def made(arena: Arena, device: FakeDevice, described: str) -> Rank:
    region = device.allocate(LAYERS * BLOCKS * PAGE_BYTES)
    bytes_ = (ctypes.c_int8 * region.length_bytes).from_address(region.address)
    tensors = torch.frombuffer(bytes_, dtype=torch.int8).view(
        LAYERS, BLOCKS, PAGE_BYTES
    )  # nobody looks at it
    caches = [CanonicalKVCacheTensor(layer, PAGE_BYTES) for layer in tensors]
    remote = RemoteAccess(("tcp",), shared=SharedTransfers(staging=Staging(device)))
    worker = StoreWorker(CanonicalKVCaches(caches, []), 0, remote)
    memory = device.view(region).reshape(LAYERS, BLOCKS, PAGE_BYTES)
    return Rank(arena, described, device, memory, worker)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena("device", 2 << 20)
    yield arena
    arena.close()


@pytest.fixture(params=["here", "elsewhere"])
def rank(arena: Arena, request: pytest.FixtureRequest) -> Iterator[Rank]:
    """The pool is on this host, or on another one and reached over tcp."""
    server, device = PoolServer(arena.regions, (), "127.0.0.1"), FakeDevice(lateness_seconds=LATE)
    rank = made(arena, device, arena.description(server.open() if request.param == "elsewhere" else {}))
    if request.param == "elsewhere":
        server.expect()
    yield rank
    rank.worker.shutdown()
    server.close()
    device.close()


def setting(memory: Bytes, value: int) -> Callable[[], None]:
    """A kernel."""
    return lambda: memory.fill(value)


def test_a_store_waits_for_the_kernels_that_were_launched_before_it(rank: Rank) -> None:
    slots = rank.slots(3)
    for block in range(3):
        rank.device.launch(setting(rank.memory[:, block], 50 + block))
    rank.submit_store(slots)
    assert rank.end() == (set(), set())
    stored = [bytes(rank.arena.view(slot.offset, BLOCK_BYTES)) for slot in slots]
    assert stored == [bytes([50 + block]) * BLOCK_BYTES for block in range(3)]
    assert rank.published(slots) == [True] * 3


def test_a_load_waits_for_the_kernels_that_still_use_its_blocks(rank: Rank) -> None:
    slots = rank.filled(3)
    rank.device.launch(setting(rank.memory, 0))
    rank.submit_load(slots)
    assert rank.end() == (set(), set())
    assert rank.values() == [1, 2, 3, 0, 0, 0]
    rank.device.mark().wait()
    assert rank.values() == [1, 2, 3, 0, 0, 0]


def test_a_load_that_failed_midway_is_a_miss(rank: Rank) -> None:
    slots = rank.filled(3)
    rank.submit_load(slots[:1])  # opens the pool
    assert rank.end() == (set(), set())
    rank.device.fail_copy(after=1)
    rank.submit_load(slots)
    assert rank.end() == ({2}, {0, 1, 2})


def test_of_a_store_that_failed_midway_nothing_is_published(rank: Rank) -> None:
    slots = rank.slots(3)
    rank.submit_store([])
    rank.end()
    rank.device.fail_copy(after=1)
    rank.submit_store(slots)
    assert rank.end() == (set(), set()), "vLLM knows no failed stores"
    assert rank.published(slots) == [False] * 3


def test_an_engine_that_stops_under_its_copies_leaves_nothing_pinned(arena: Arena) -> None:
    device = FakeDevice(lateness_seconds=LATE)
    rank, slots = made(arena, device, arena.description()), [Slot(0, BLOCK_BYTES, 1)]
    arena.generations[0] = 1
    device.launch(setting(rank.memory, 9))
    rank.submit_store(slots)
    rank.worker.shutdown()
    assert device.pinned_ranges() == []
    assert rank.published(slots) == [True], "its copies have ended, each whole"
    assert bytes(arena.view(0, BLOCK_BYTES)) == bytes([9]) * BLOCK_BYTES
    device.close()


def test_memory_of_a_device_that_nothing_reaches_is_refused() -> None:
    caches = [CanonicalKVCacheTensor(torch.empty((2, 8), dtype=torch.int8, device="meta"), 8)]
    with pytest.raises(TransferError, match="was given no staging"):
        StoreWorker(CanonicalKVCaches(caches, []), 0, RemoteAccess())
