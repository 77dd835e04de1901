"""Triton's quantization beside numpy's: each reads what the other made."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from llmserve.core.errors import StartFailed
from llmserve.kvstore.formats import BlockShape, Quantize
from llmserve.kvstore.formats.quantize import TOP, Quantizer, quantized_bytes

triton = pytest.importorskip("triton", reason="no Triton")

from llmserve.kvstore.formats.gpu import GpuQuantizer  # noqa: E402 - not without Triton

Bytes = npt.NDArray[np.uint8]
SHAPES = [
    "bfloat16 6(c16 t32|t32 c16)",
    "bfloat16 2(t4 c8 t16 c2|c1 t32 c16 t2)",
    "bfloat16 2(t24 c80)",  # no powers of 2
    "float16 3(t16 c24)",
    "float32 2(t16 c8) 3(t4 c2|c5)",
    "bfloat16 20(t64)",
]
each_shape = pytest.mark.parametrize("text", SHAPES)
each_grid = pytest.mark.parametrize("grid", [Quantize.INT8, Quantize.FP8])


def block_of(shape: BlockShape) -> Bytes:
    random = np.random.default_rng(7)
    sizes = np.exp(2 * random.normal(size=shape.elements))
    numbers = torch.from_numpy(random.normal(size=shape.elements) * sizes)
    kept: Bytes = numbers.to(getattr(torch, shape.element)).view(torch.uint8).numpy()
    return kept


def on_cpu(shape: BlockShape, grid: Quantize, block: Bytes) -> Bytes:
    codes = np.empty(quantized_bytes(shape), np.uint8)
    assert Quantizer(shape, grid).quantize(block, codes)
    return codes


def on_device(shape: BlockShape, grid: Quantize, block: Bytes, device: torch.device) -> tuple[Bytes, bool]:
    quantizer = GpuQuantizer(shape, grid, device)
    out = torch.full((quantizer.quantized_bytes,), 0xAA, dtype=torch.uint8, device=device)
    refused = quantizer.quantize(torch.from_numpy(block).to(device), out)
    return out.cpu().numpy(), bool(refused.item())


@each_grid
@each_shape
def test_the_same_scales_and_codes(text: str, grid: Quantize, device: torch.device) -> None:
    shape = BlockShape.parse(text)
    block = block_of(shape)
    expected, (found, refused) = on_cpu(shape, grid, block), on_device(shape, grid, block, device)
    assert not refused
    assert (found == expected).all()


@each_grid
def test_numbers_half_way_between_two_codes_go_to_the_same_one(grid: Quantize, device: torch.device) -> None:
    """The scale is 1: the largest number is the largest code."""
    shape = BlockShape.parse("float32 1(t1024 c1)")
    halves = np.arange(1023, dtype=np.float32) / 8 - 63 if grid is Quantize.INT8 else np.arange(1023) / 1024
    block = np.append(halves, TOP[grid]).astype(np.float32).view(np.uint8)
    found, refused = on_device(shape, grid, block, device)
    assert not refused
    assert (found == on_cpu(shape, grid, block)).all()


@each_grid
@each_shape
def test_numbers_come_back_as_on_the_cpu_to_the_bit(text: str, grid: Quantize, device: torch.device) -> None:
    shape = BlockShape.parse(text)
    codes, expected = on_cpu(shape, grid, block_of(shape)), np.empty(shape.size_bytes, np.uint8)
    Quantizer(shape, grid).dequantize(codes, expected)
    found = torch.empty(shape.size_bytes, dtype=torch.uint8, device=device)
    GpuQuantizer(shape, grid, device).dequantize(torch.from_numpy(codes).to(device), found)
    assert (found.cpu().numpy() == expected).all()


@each_grid
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 2.0**121])
def test_what_no_scale_carries_is_refused(bad: float, grid: Quantize, device: torch.device) -> None:
    shape = BlockShape.parse(SHAPES[0])
    block = block_of(shape)
    torch.from_numpy(block).view(torch.bfloat16)[-3] = bad
    assert on_device(shape, grid, block, device)[1]


def test_opaque_elements_are_refused(device: torch.device) -> None:
    with pytest.raises(StartFailed, match="cannot be quantized"):
        GpuQuantizer(BlockShape.parse("opaque 1(t64)"), Quantize.INT8, device)
