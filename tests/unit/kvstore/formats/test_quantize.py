"""Quantization: how far numbers may move, and what is never lost."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.errors import StartFailed
from llmserve.kvstore.formats import BlockShape, Element, Quantize
from llmserve.kvstore.formats.elements import STORAGE, widen
from llmserve.kvstore.formats.quantize import Quantizer, quantized_bytes

GRIDS = [Quantize.INT8, Quantize.FP8]
SHAPES = [
    "bfloat16 6(c16 t32|t32 c16)",
    "bfloat16 5(t2 c4 t16 c2|c2 t8 c16 t2)",
    "float16 3(t16 c24)",
    "float32 2(t16 c8) 3(t4 c2|c5)",
    "bfloat16 1(t400 c700)",  # a part larger than a tile
    "bfloat16 999(t128 c2)",  # several tiles, the last one smaller
]
Numbers = npt.NDArray[np.float32]


def stored(shape: BlockShape, numbers: Numbers) -> npt.NDArray[np.uint8]:
    if shape.element is Element.BFLOAT16:
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return numbers.astype(STORAGE[shape.element]).view(np.uint8)


def numbers_of(shape: BlockShape, block: npt.NDArray[np.uint8]) -> Numbers:
    numbers = np.empty(shape.elements, np.float32)
    widen(shape.element, block.view(STORAGE[shape.element]), numbers)
    return numbers


def there_and_back(shape: BlockShape, grid: Quantize, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    quantizer, codes, back = Quantizer(shape, grid), _bytes(quantized_bytes(shape)), np.empty_like(block)
    assert quantizer.quantize(block, codes)
    quantizer.dequantize(codes, back)
    return back


def _bytes(size: int) -> npt.NDArray[np.uint8]:
    return np.empty(size, np.uint8)


def channel_of(shape: BlockShape) -> npt.NDArray[np.int64]:
    """For each element a number for its scale, worked out one element at a time."""
    channels = np.empty(shape.elements, np.int64)
    for slab in shape.slabs():
        for place in np.ndindex(slab.repeats, *slab.part.sizes):
            inside = place[1:]
            offset = int(np.ravel_multi_index(inside, slab.part.sizes))
            kept = [0 if axis in slab.part.token_axes else at for axis, at in enumerate(inside)]
            at = slab.section_start + place[0] * slab.stride + slab.offset + offset
            named = int(np.ravel_multi_index(kept, slab.part.sizes))
            channels[at] = slab.section_start + place[0] * slab.stride + slab.offset + named
    return channels


def tops(shape: BlockShape, numbers: Numbers) -> Numbers:
    """For each element the largest magnitude of its channel."""
    channels = channel_of(shape)
    found = np.zeros(shape.elements, np.float32)
    np.maximum.at(found, channels, np.abs(numbers))
    return np.take(found, channels)


@pytest.mark.parametrize("text", SHAPES[:4])
def test_int8_is_off_by_half_a_step_of_its_channel(text: str) -> None:
    shape = BlockShape.parse(text)
    block = stored(shape, scattered(shape.elements))
    numbers, back = (numbers_of(shape, data) for data in (block, there_and_back(shape, Quantize.INT8, block)))
    step = tops(shape, numbers) / 127 * (1 + 2**-7)  # bfloat16 scales are rounded up
    assert (np.abs(numbers - back) <= step / 2 + np.abs(numbers) * 2**-8).all()


@pytest.mark.parametrize("text", SHAPES[:4])
def test_fp8_is_off_by_a_sixteenth_or_a_tiny_part_of_its_channel(text: str) -> None:
    shape = BlockShape.parse(text)
    block = stored(shape, scattered(shape.elements))
    numbers, back = (numbers_of(shape, data) for data in (block, there_and_back(shape, Quantize.FP8, block)))
    tiny = tops(shape, numbers) / 448 * 2**-10 * (1 + 2**-7)
    assert (np.abs(numbers - back) <= np.maximum(np.abs(numbers) / 16, tiny) + np.abs(numbers) * 2**-8).all()


def scattered(count: int) -> Numbers:
    random = np.random.default_rng(count)
    sizes = np.exp(3 * random.normal(size=count))
    numbers: Numbers = (random.normal(size=count) * sizes).astype(np.float32)
    return numbers


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("text", SHAPES)
def test_what_was_quantized_once_stays_as_it_is(text: str, grid: Quantize) -> None:
    """Its numbers are on the grid: codes 1 to 63, scale 2."""
    shape = BlockShape.parse(text)
    codes = np.arange(shape.elements) % 16
    top = np.float32(127 if grid is Quantize.INT8 else 448)
    numbers = np.where(some_tops(shape), top, codes.astype(np.float32)) * np.float32(2)
    block = stored(shape, numbers.astype(np.float32))
    assert (there_and_back(shape, grid, block) == block).all()


def some_tops(shape: BlockShape) -> npt.NDArray[np.bool_]:
    """At least one element of each channel."""
    if shape.elements > 20_000:  # the loop above would take seconds: every second one
        return np.random.default_rng(4).random(shape.elements) < 0.5
    first = np.zeros(shape.elements, np.bool_)
    first[np.unique(channel_of(shape), return_index=True)[1]] = True
    return first


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 2.0**121])
@pytest.mark.parametrize("text", SHAPES[:4])
def test_what_no_scale_carries_is_refused(text: str, bad: float, grid: Quantize) -> None:
    shape = BlockShape.parse(text)
    numbers = np.ones(shape.elements, np.float32)
    numbers[-3] = bad
    with np.errstate(over="ignore"):
        block = stored(shape, numbers)
    assert not Quantizer(shape, grid).quantize(block, _bytes(quantized_bytes(shape)))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-30, 1e30])
def test_channels_of_any_size(size: float, grid: Quantize) -> None:
    shape = BlockShape.parse("float32 1(t8 c2)")
    numbers = np.tile(np.array([size, 1], np.float32), 8)
    back = numbers_of(shape, there_and_back(shape, grid, numbers.view(np.uint8)))
    assert np.isfinite(back).all()
    assert (np.abs(back - numbers) <= np.maximum(np.abs(numbers) / 16, 2**-95)).all()


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=32, max_size=32))
def test_signs_and_finiteness_survive(values: list[float]) -> None:
    shape = BlockShape.parse("float32 2(t4 c2|c2 t4)")
    numbers = np.array(values, np.float32)
    for grid in GRIDS:
        back = numbers_of(shape, there_and_back(shape, grid, numbers.view(np.uint8)))
        assert np.isfinite(back).all()
        assert ((back == 0) | (np.sign(back) == np.sign(numbers))).all()


def test_opaque_elements_are_refused() -> None:
    with pytest.raises(StartFailed, match="cannot be quantized"):
        Quantizer(BlockShape.parse("opaque 1(t64)"), Quantize.INT8)
