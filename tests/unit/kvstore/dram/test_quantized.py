"""A pool of codes: what stands in its slots, what comes back, and what is not taken for a block."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import xxhash

from llmserve.core.errors import TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.client.access import RemoteAccess, open_pool
from llmserve.kvstore.dram.client.copier import CopyOutcome, PoolAccess
from llmserve.kvstore.dram.client.quantized import ROWS, Codes, HostCoder, QuantizedPool
from llmserve.kvstore.formats import Element, Quantize, grouped
from llmserve.kvstore.formats.quantize import Quantizer
from llmserve.transfer.base import Int64Array, Region, Spans
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.engine import SharedTransfers

PIECES, ELEMENTS, BLOCKS = 3, 320, ROWS + 3
PIECE_BYTES = 2 * ELEMENTS
SIZE = PIECES * PIECE_BYTES
SHAPE = grouped(Element.FLOAT16, SIZE)
STEP = 4096
Numbers = npt.NDArray[np.float16]


@dataclass
class Ends:
    """numbers: the worker's memory, shape [PIECES, BLOCKS, ELEMENTS]."""

    arena: Arena
    codes: Codes
    numbers: Numbers
    regions: list[Region]
    pool: PoolAccess

    def slots(self, count: int = BLOCKS) -> list[Slot]:
        made = [Slot(at * STEP, self.codes.row_bytes, at + 1) for at in range(count)]
        for slot in made:
            self.arena.generations[slot.page] = slot.generation
        return made

    def leased(self, slots: list[Slot]) -> list[Slot]:
        return [replace(slot, checksum=xxhash.xxh3_64_intdigest(self.held(slot))) for slot in slots]

    def spans(self, count: int = BLOCKS) -> Spans:
        regions = np.tile(np.arange(PIECES), count)
        offsets = np.repeat(np.arange(count) * PIECE_BYTES, PIECES)
        return Spans(regions, offsets, np.full_like(offsets, PIECE_BYTES))

    def held(self, slot: Slot) -> bytes:
        return bytes(self.arena.view(slot.offset, slot.length_bytes))

    def block(self, number: int) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(self.numbers[:, number]).view(np.uint8).ravel()


def codes_of(block: npt.NDArray[np.uint8], codes: Codes) -> npt.NDArray[np.uint8]:
    made = np.zeros(codes.code_bytes, np.uint8)
    assert Quantizer(codes.shape, codes.grid).quantize(block, made)
    return made


def filled(numbers: Numbers) -> None:
    numbers[:] = np.random.default_rng(3).normal(size=numbers.shape)


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena("codes", 2 << 20)
    yield made
    made.close()


@pytest.fixture(params=[Quantize.INT8, Quantize.FP8])
def ends(arena: Arena, request: pytest.FixtureRequest) -> Iterator[Ends]:
    codes = Codes(SHAPE, request.param)
    numbers = np.empty((PIECES, BLOCKS, ELEMENTS), np.float16)
    filled(numbers)
    regions = [Region(piece.ctypes.data, piece.nbytes) for piece in numbers]
    pool = open_pool("kvmanager-0", arena.description(), regions, RemoteAccess(codes=codes))
    yield Ends(arena, codes, numbers, regions, pool)
    pool.close()


def test_slots_have_the_codes_of_the_blocks_and_a_tag(ends: Ends) -> None:
    slots = ends.slots()
    stored = ends.pool.store(slots, ends.spans())
    assert [one.outcome for one in stored] == [CopyOutcome.DONE] * BLOCKS
    for number, slot in enumerate(slots):
        expected = codes_of(ends.block(number), ends.codes).tobytes()
        assert ends.held(slot)[: len(expected)] == expected
        assert ends.held(slot)[-8:] == ends.codes.tag
        assert ends.arena.checksum(slot) == stored[number].checksum
    assert ends.codes.stored_shape.size_bytes == ends.codes.row_bytes < SHAPE.size_bytes * 0.6
    assert ends.codes.stored_shape.element is Element.OPAQUE, "no lower tier quantizes it again"


def test_blocks_come_back_as_near_as_codes_can_say(ends: Ends) -> None:
    slots = ends.slots()
    ends.pool.store(slots, ends.spans())
    expected = np.empty((BLOCKS, SHAPE.size_bytes), np.uint8)
    for number in range(BLOCKS):
        codes = codes_of(ends.block(number), ends.codes)
        Quantizer(SHAPE, ends.codes.grid).dequantize(codes, expected[number])
    ends.numbers[:] = 0
    loaded = ends.pool.load(ends.leased(slots), ends.spans())
    assert [one.outcome for one in loaded] == [CopyOutcome.DONE] * BLOCKS
    assert all(np.array_equal(ends.block(number), expected[number]) for number in range(BLOCKS))


def test_a_block_that_no_scale_carries_is_not_stored(ends: Ends) -> None:
    ends.numbers[1, 2, 5] = np.inf
    slots = ends.slots(4)
    outcomes = [one.outcome for one in ends.pool.store(slots, ends.spans(4))]
    assert outcomes == [CopyOutcome.DONE] * 2 + [CopyOutcome.UNFIT, CopyOutcome.DONE]
    assert [bool(ends.arena.checksum(slot)) for slot in slots] == [True, True, False, True]
    ends.numbers[:] = np.nan
    assert [one.outcome for one in ends.pool.store(slots[:1], ends.spans(1))] == [CopyOutcome.UNFIT]


def test_codes_of_another_grid_or_shape_are_corrupt(ends: Ends) -> None:
    slots = ends.slots(2)
    ends.pool.store(slots, ends.spans(2))
    other = Quantize.FP8 if ends.codes.grid is Quantize.INT8 else Quantize.INT8
    others = [replace(ends.codes, grid=other), replace(ends.codes, shape=grouped(Element.BFLOAT16, SIZE))]
    for codes in others:
        assert codes.row_bytes == ends.codes.row_bytes
        pool = open_pool("kvmanager-0", ends.arena.description(), ends.regions, RemoteAccess(codes=codes))
        before = ends.numbers.copy()
        outcomes = [one.outcome for one in pool.load(ends.leased(slots), ends.spans(2))]
        assert outcomes == [CopyOutcome.CORRUPT] * 2
        assert np.array_equal(ends.numbers, before), "and nothing was decoded"
        pool.close()


def test_a_block_that_was_lost_is_not_decoded(ends: Ends) -> None:
    slots = ends.slots(2)
    ends.pool.store(slots, ends.spans(2))
    leased, before = ends.leased(slots), ends.numbers.copy()
    ends.arena.generations[slots[0].page] = 99
    ends.numbers[:] = 0
    outcomes = [one.outcome for one in ends.pool.load(leased, ends.spans(2))]
    assert outcomes == [CopyOutcome.MOVED, CopyOutcome.DONE]
    assert not ends.numbers[:, 0].any()
    assert np.allclose(ends.numbers[:, 1], before[:, 1], atol=0.2)


def test_pieces_must_be_registered_and_make_up_the_blocks(ends: Ends) -> None:
    slots, whole = ends.slots(1), ends.spans(1)
    beyond = Spans(whole.regions, whole.offsets + BLOCKS * PIECE_BYTES, whole.lengths)
    for spans, reason in ((whole.cut(slice(0, 2)), "do not make up"), (beyond, "outside registered memory")):
        for copy in (ends.pool.store, ends.pool.load):
            with pytest.raises(TransferError, match=reason):
                copy(slots, spans)


# -- on a device, where coding ends late


class LateCoder:
    """A HostCoder whose work the kernels of a fake device do, in its memory."""

    def __init__(self, codes: Codes, device: FakeDevice, numbers: Region) -> None:
        self._device, self._host = device, HostCoder(codes)
        self.rows = device.allocate(self._host.rows.length_bytes)
        self._ours = device.view(self.rows).reshape(ROWS, -1)
        self._shift = device.view(numbers).ctypes.data - numbers.address

    def encode(self, starts: Int64Array, lengths: Int64Array, row: int) -> None:
        def kernel() -> None:
            self._host.encode(starts + self._shift, lengths, row)
            self._ours[row] = self._host._rows[row]

        self._device.launch(kernel)

    def decode(self, row: int, starts: Int64Array, lengths: Int64Array) -> None:
        def kernel() -> None:
            self._host._rows[row] = self._ours[row]
            self._host.decode(row, starts + self._shift, lengths)

        self._device.launch(kernel)

    def fits(self, row: int) -> bool:
        return self._host.fits(row)

    def has_tag(self, row: int) -> bool:
        return bytes(self._ours[row, -8:]) == self._host._tag.tobytes()

    def wait(self) -> None:
        self._device.mark().wait()


def test_rows_are_copied_when_they_are_coded_and_blocks_are_whole_at_the_end(arena: Arena) -> None:
    device, codes = FakeDevice(), Codes(SHAPE, Quantize.INT8)
    whole = device.allocate(PIECES * BLOCKS * PIECE_BYTES)
    numbers = device.view(whole).view(np.float16).reshape(PIECES, BLOCKS, ELEMENTS)
    filled(numbers)
    length = BLOCKS * PIECE_BYTES
    regions = [Region(whole.address + at * length, length, device.memory) for at in range(PIECES)]
    coder, shared = LateCoder(codes, device, whole), SharedTransfers(staging=Staging(device))
    inner = open_pool("kvmanager-0", arena.description(), [coder.rows], RemoteAccess(shared=shared))
    inner._copier._pinning.wait()  # type: ignore[attr-defined]
    pool = QuantizedPool(inner, regions, coder, codes)
    ends = Ends(arena, codes, numbers, regions, pool)
    slots, before = ends.slots(), numbers.copy()
    assert [one.outcome for one in pool.store(slots, ends.spans())] == [CopyOutcome.DONE] * BLOCKS
    for number, slot in enumerate(slots):
        expected = codes_of(ends.block(number), codes).tobytes()
        assert ends.held(slot)[: len(expected)] == expected
    numbers[:] = 0
    loaded = pool.load(ends.leased(slots), ends.spans())
    assert [one.outcome for one in loaded] == [CopyOutcome.DONE] * BLOCKS
    assert np.allclose(numbers, before, atol=0.05)
    pool.close()
    assert device.pinned_ranges() == []
    device.close()
