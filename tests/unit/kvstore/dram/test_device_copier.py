"""Copies between slots and the memory of a device: each wait, and what fails. test_copier.py has the parity.

The device ends each copy late, so a test that looks at once sees old bytes where a wait was left out.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.client import pinning as pinning_module
from llmserve.kvstore.dram.client.access import RemoteAccess, open_pool
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.dram.client.copier import CopyOutcome, PoolAccess, PoolCopier
from llmserve.kvstore.dram.client.pinning import ArenaPinning
from llmserve.transfer.base import Int64Array
from llmserve.transfer.devices import Bytes, Mark, Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.devices.staging import SLOT_BYTES
from llmserve.transfer.engine.counters import PairMatrix
from llmserve.transfer.engine.engine import SharedTransfers
from tests.unit.kvstore.dram.worker_memory import BLOCK_BYTES, BLOCKS, WorkerMemory

STEP = -(-BLOCK_BYTES // 4096) * 4096
LATE = 0.02
CAPACITY = 4 * SLOT_BYTES


@dataclass
class Ends:
    arena: Arena
    device: FakeDevice
    shared: SharedTransfers
    memory: WorkerMemory
    pool: PoolAccess

    def slot(self, number: int, content: int | None = None) -> Slot:
        """content: the block of the memory that the slot has."""
        slot = Slot(number * STEP, BLOCK_BYTES, number + 1)
        self.arena.generations[slot.page] = slot.generation
        if content is None:
            return slot
        self.arena.view(slot.offset, BLOCK_BYTES)[:] = self.memory.block(content)
        return replace(slot, checksum=self.memory.checksum(content))

    def noted(self, slots: Sequence[Slot]) -> list[int]:
        return [self.arena.checksum(slot) for slot in slots]

    def reasons(self) -> list[str]:
        return [f"{row.transport}: {row.breaker}: {row.reason}" for row in self.shared.matrix.rows()]


def opened(arena: Arena, device: FakeDevice, wait_for_pins: bool = True) -> Ends:
    shared = SharedTransfers(staging=Staging(device))
    memory = WorkerMemory(1, device=device)
    pool = open_pool("kvmanager-0", arena.description(), memory.regions, RemoteAccess(shared=shared))
    if wait_for_pins:
        pinning_of(pool).wait()
    return Ends(arena, device, shared, memory, pool)


def pinning_of(pool: PoolAccess) -> ArenaPinning:
    return pool._copier._pinning  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena("copies", CAPACITY)
    yield made
    made.close()


@pytest.fixture
def ends(arena: Arena) -> Iterator[Ends]:
    """All of the arena is pinned."""
    made = opened(arena, FakeDevice(lateness_seconds=LATE))
    assert made.device.pinned_ranges() == [(made.pool._arena.region.address, CAPACITY)]  # type: ignore[attr-defined]
    yield made
    made.pool.close()
    made.device.close()


def test_a_stored_block_is_digested_when_its_copy_has_ended(ends: Ends) -> None:
    slots = [ends.slot(number) for number in range(BLOCKS)]
    stored = ends.pool.store(slots, ends.memory.spans(*range(BLOCKS)))
    assert [one.checksum for one in stored] == list(map(ends.memory.checksum, range(BLOCKS)))
    assert ends.noted(slots) == [one.checksum for one in stored]


def test_a_loaded_block_is_in_place_when_the_call_returns(ends: Ends) -> None:
    leased, expected = [ends.slot(0, content=2), ends.slot(1, content=3)], ends.memory.block(2)
    loaded = ends.pool.load(leased, ends.memory.spans(0, 1))
    assert [one.outcome for one in loaded] == [CopyOutcome.DONE] * 2
    assert (ends.memory.block(0), ends.memory.block(1)) == (expected, ends.memory.block(3))


def test_the_host_reads_what_a_device_stored_and_the_other_way(ends: Ends) -> None:
    host, attached = WorkerMemory(2), AttachedArena(ends.arena.description())
    copier = PoolCopier(attached, host.regions)
    [stored] = ends.pool.store([ends.slot(0)], ends.memory.spans(1))
    copier.load([replace(ends.slot(0), checksum=stored.checksum)], host.spans(2))
    assert host.block(2) == ends.memory.block(1)
    [stored] = copier.store([ends.slot(1)], host.spans(3))
    ends.pool.load([replace(ends.slot(1), checksum=stored.checksum)], ends.memory.spans(0))
    assert ends.memory.block(0) == host.block(3)
    attached.close()


def test_of_a_store_that_failed_midway_no_block_can_be_published(ends: Ends) -> None:
    slots = [ends.slot(number) for number in range(BLOCKS)]
    ends.device.fail_copy(after=1)
    with pytest.raises(TransferError, match="a copy of memory of GPU 0 failed"):
        ends.pool.store(slots, ends.memory.spans(*range(BLOCKS)))
    assert ends.noted(slots) == [0] * BLOCKS


class BusyDevice(FakeDevice):
    """Does something else before each copy to it."""

    def scatter(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        self._incoming.submit(lambda: time.sleep(LATE))
        return super().scatter(starts, lengths, packed)


def test_when_a_load_has_failed_no_copy_of_it_is_under_way(arena: Arena) -> None:
    ends = opened(arena, BusyDevice())
    leased = [ends.slot(number, content=3) for number in range(3)]
    ends.device.fail_copy()
    with pytest.raises(TransferError, match="a copy of memory of GPU 0 failed"):
        ends.pool.load(leased, ends.memory.spans(0, 1, 2))
    assert [ends.memory.block(number) for number in (1, 2)] == [ends.memory.block(3)] * 2
    ends.pool.close()
    ends.device.close()


class LosingDevice(FakeDevice):
    """Calls `lose` when the first copy is started."""

    lose: Callable[[], None] = staticmethod(lambda: None)

    def gather(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        mark = super().gather(starts, lengths, packed)
        self.lose()
        return mark


def test_a_slot_that_is_lost_under_the_copy_is_moved(arena: Arena) -> None:
    device = LosingDevice()
    ends = opened(arena, device)
    slots = [ends.slot(0), ends.slot(1)]
    device.lose = lambda: arena.generations.__setitem__(slots[0].page, 0)
    outcomes = [one.outcome for one in ends.pool.store(slots, ends.memory.spans(0, 1))]
    assert outcomes == [CopyOutcome.MOVED, CopyOutcome.DONE]
    assert ends.noted(slots) == [0, ends.memory.checksum(1)]
    ends.pool.close()
    device.close()


# -- pinning


def test_closing_unpins_all(ends: Ends) -> None:
    for _ in range(2):
        ends.pool.close()
        assert ends.device.pinned_ranges() == []


def test_memory_that_cannot_be_pinned_is_said_once_and_copied_through_a_staging(
    arena: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ends = opened(arena, FakeDevice(pinned_bytes=2 * SLOT_BYTES))
        for number in range(2):
            [stored] = ends.pool.store([ends.slot(number)], ends.memory.spans(number))
            leased = replace(ends.slot(number), checksum=stored.checksum)
            assert ends.pool.load([leased], ends.memory.spans(3))[0].outcome is CopyOutcome.DONE
            assert ends.memory.block(3) == ends.memory.block(number)
    said = "0.0 of 0.0 GiB are pinned: no pinned memory: 16777216 bytes wanted, 8388608 left"
    assert ends.reasons() == [f"pinned memory of kvmanager-0: unavailable: {said}"]
    assert [record.message for record in caplog.records] == [
        f"kv pool of kvmanager-0: {said}; the rest is copied through a staging"
    ]
    ends.pool.close()
    assert ends.reasons() == []


def test_without_any_pinned_memory_a_copy_fails(arena: Arena) -> None:
    ends = opened(arena, FakeDevice(pinned_bytes=0))
    slot = ends.slot(0, content=0)
    for copy in (ends.pool.store, ends.pool.load):
        with pytest.raises(TransferError, match="no pinned memory"):
            copy([slot], ends.memory.spans(1))
    assert ends.noted([slot]) == [0]
    ends.pool.close()


def test_a_part_that_was_pinned_is_used(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning_module, "STEP_BYTES", 2 * STEP)
    ends = opened(arena, FakeDevice(pinned_bytes=5 * STEP))
    assert len(ends.device.pinned_ranges()) == 2
    slots = [ends.slot(0), ends.slot(3)]
    ends.pool.store(slots, ends.memory.spans(0, 1))
    assert ends.noted(slots) == [ends.memory.checksum(0), ends.memory.checksum(1)]
    with pytest.raises(TransferError, match="no pinned memory"):
        ends.pool.store([ends.slot(4)], ends.memory.spans(0))
    ends.pool.close()
    assert ends.device.pinned_ranges() == []


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 10, True), (10, 10, True), (9, 2, False), (19, 1, True), (19, 2, False), (20, 1, False)],
)
def test_a_copy_must_not_cross_two_steps(
    offset: int, length: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning_module, "STEP_BYTES", 10)
    device = FakeDevice(pinned_bytes=20)
    pinning = ArenaPinning("kvmanager-0", np.zeros(30, np.uint8), device, PairMatrix())
    pinning.wait()
    assert pinning.holds(offset, length) is expected
    pinning.close()


class SlowPins(FakeDevice):
    """Pins when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.began = threading.Event(), threading.Event()
        self.pins = 0

    def pin(self, memory: Bytes) -> Callable[[], None]:
        if memory.nbytes != SLOT_BYTES:  # not a slot of the staging
            self.began.set()
            self.may.wait()
            self.pins += 1
        return super().pin(memory)


def test_blocks_are_copied_while_the_memory_is_being_pinned(arena: Arena) -> None:
    device = SlowPins()
    ends = opened(arena, device, wait_for_pins=False)
    [stored] = ends.pool.store([ends.slot(0)], ends.memory.spans(0))
    assert stored.checksum == ends.memory.checksum(0)
    device.may.set()
    pinning_of(ends.pool).wait()
    ends.pool.close()


def test_closing_waits_for_the_step_that_is_being_pinned_and_pins_no_more(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning_module, "STEP_BYTES", CAPACITY // 2)
    device = SlowPins()
    ends = opened(arena, device, wait_for_pins=False)
    device.began.wait()
    closing = threading.Thread(target=ends.pool.close)
    closing.start()
    closing.join(LATE)
    assert closing.is_alive()
    device.may.set()
    closing.join()
    assert device.pins == 1
    assert device.pinned_ranges() == []
