"""Copies between slots and a worker's memory: every byte in its place, and what must not be trusted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.client import copier as copier_module
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.dram.client.copier import Copied, CopyOutcome, LocalMemory, PoolCopier
from llmserve.kvstore.dram.client.device_copier import DevicePoolCopier
from llmserve.kvstore.dram.client.pinning import ArenaPinning
from llmserve.transfer.base import Region, Spans
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.devices.staging import SLOT_BYTES
from llmserve.transfer.engine.counters import PairMatrix
from tests.unit.kvstore.dram.worker_memory import (
    BLOCK_BYTES,
    BLOCKS,
    LAYERS,
    ORDERS,
    PIECE_BYTES,
    WorkerMemory,
)

STEP = -(-BLOCK_BYTES // 4096) * 4096


@dataclass
class Ends:
    arena: Arena
    attached: AttachedArena
    memory: WorkerMemory
    copier: PoolCopier | DevicePoolCopier

    def slot(self, number: int) -> Slot:
        offset = number * STEP
        self.arena.generations[offset // 4096] = number + 1
        return Slot(offset, BLOCK_BYTES, number + 1)

    def held(self, slot: Slot) -> bytes:
        return bytes(self.arena.view(slot.offset, slot.length_bytes))


Made = Iterator[tuple[WorkerMemory, PoolCopier | DevicePoolCopier]]


def on_host(attached: AttachedArena, order: str) -> Made:
    memory = WorkerMemory(1, order)
    yield memory, PoolCopier(attached, memory.regions)


def on_device(attached: AttachedArena, order: str, pinned_bytes: int) -> Made:
    device = FakeDevice(pinned_bytes=pinned_bytes)
    memory = WorkerMemory(1, order, device)
    pinning = ArenaPinning("kvmanager-0", attached.data, device, PairMatrix())
    pinning.wait()
    copier = DevicePoolCopier(attached, memory.regions, Staging(device), pinning)
    yield memory, copier
    copier.close()
    device.close()


WAYS: dict[str, Callable[[AttachedArena, str], Made]] = {
    "host": on_host,
    "pinned": partial(on_device, pinned_bytes=1 << 30),
    "staged": partial(on_device, pinned_bytes=2 * SLOT_BYTES),
}


@pytest.fixture(params=[(way, order) for way in WAYS for order in ORDERS], ids="-".join)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    way, order = request.param
    arena = Arena("copies", 4 * SLOT_BYTES)
    attached = AttachedArena(arena.description())
    made = WAYS[way](attached, order)
    memory, copier = next(made)
    yield Ends(arena, attached, memory, copier)
    assert not list(made)
    attached.close()
    arena.close()


@pytest.mark.parametrize("group_bytes", [1, 30_000, 1 << 20])
def test_blocks_go_in_and_out_again(ends: Ends, group_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier_module, "_GROUP_BYTES", group_bytes)
    copier, slots = ends.copier, [ends.slot(0), ends.slot(2)]
    stored = copier.store(slots, ends.memory.spans(3, 0))
    assert stored == [Copied(CopyOutcome.DONE, ends.memory.checksum(number)) for number in (3, 0)]
    assert [ends.held(slot) for slot in slots] == [ends.memory.block(3), ends.memory.block(0)]
    kept = [ends.memory.block(number) for number in range(4)]
    leased = [replace(slot, checksum=one.checksum) for slot, one in zip(slots, stored, strict=True)]
    assert copier.load(leased, ends.memory.spans(1, 2)) == stored
    after = [ends.memory.block(number) for number in range(4)]
    assert after == [kept[0], kept[3], kept[0], kept[3]], "and nothing else was touched"


def test_no_flipped_byte_is_served(ends: Ends) -> None:
    copier, slot = ends.copier, ends.slot(1)
    [stored] = copier.store([slot], ends.memory.spans(0))
    leased = replace(slot, checksum=stored.checksum)
    for place in (0, 1, PIECE_BYTES, BLOCK_BYTES // 2, BLOCK_BYTES - 1):
        ends.arena.view(slot.offset + place, 1)[0] ^= 0x10
        assert copier.load([leased], ends.memory.spans(1))[0].outcome is CopyOutcome.CORRUPT
        ends.arena.view(slot.offset + place, 1)[0] ^= 0x10
    assert copier.load([leased], ends.memory.spans(1))[0].outcome is CopyOutcome.DONE


def test_a_slot_that_was_given_to_another_is_moved(ends: Ends) -> None:
    copier, slot = ends.copier, ends.slot(1)
    [stored] = copier.store([slot], ends.memory.spans(0))
    before = ends.held(slot)
    ends.arena.generations[slot.offset // 4096] = 99
    leased = replace(slot, checksum=stored.checksum)
    assert copier.load([leased], ends.memory.spans(1))[0].outcome is CopyOutcome.MOVED
    assert copier.store([slot], ends.memory.spans(2))[0].outcome is CopyOutcome.MOVED
    assert ends.held(slot) == before, "a late writer writes nothing"


@pytest.mark.parametrize("ends", [("host", order) for order in ORDERS], indirect=True, ids="-".join)
def test_a_slot_that_is_lost_under_the_copy_is_moved(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's copies are in tests/unit/kvstore/dram/test_device_copier.py."""
    monkeypatch.setattr(copier_module, "_GROUP_BYTES", 1)
    copier, slot = ends.copier, ends.slot(1)
    digest, seen = LocalMemory.digest, []

    def lose(memory: LocalMemory, rows: object, state: object) -> None:
        digest(memory, rows, state)  # type: ignore[arg-type]
        seen.append(rows)
        ends.arena.generations[slot.offset // 4096] = 0

    monkeypatch.setattr(LocalMemory, "digest", lose)
    assert copier.store([slot], ends.memory.spans(0))[0].outcome is CopyOutcome.MOVED
    assert len(seen) == 1, "and the writer has stopped at the next group"


def test_pieces_must_be_registered_and_make_up_the_blocks(ends: Ends) -> None:
    copier, slot = ends.copier, ends.slot(0)
    whole = ends.memory.spans(0)
    wrong = [
        (whole.cut(slice(0, -1)), "do not make up"),
        (ends.memory.spans(0, 1), "do not make up"),
        (whole.cut(slice(0, 0)), "do not make up"),
        (
            Spans(whole.regions, whole.offsets + BLOCKS * BLOCK_BYTES, whole.lengths),
            "outside registered memory",
        ),
        (Spans(whole.regions + LAYERS, whole.offsets, whole.lengths), "outside registered memory"),
    ]
    for spans, reason in wrong:
        with pytest.raises(TransferError, match=reason):
            copier.store([slot], spans)
    assert ends.held(slot) == bytes(BLOCK_BYTES)


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=5))
def test_blocks_of_any_pieces_are_found(blocks: list[list[int]]) -> None:
    memory = np.arange(200, dtype=np.uint8)
    local = LocalMemory([Region(memory.ctypes.data, 200)])
    lengths = np.array([length for block in blocks for length in block], np.int64)
    offsets = (np.arange(len(lengths)) * 37) % 160
    found = local.blocks(Spans(np.zeros_like(lengths), offsets, lengths), [sum(block) for block in blocks])
    pieces = [
        [(rows.address + n * rows.stride - memory.ctypes.data, rows.length) for n in range(rows.count)]
        for block in found
        for rows in block
    ]
    expected = list(zip(offsets.tolist(), lengths.tolist(), strict=True))
    assert [piece for rows in pieces for piece in rows] == expected
    assert [sum(rows.total_bytes for rows in block) for block in found] == [sum(block) for block in blocks]
