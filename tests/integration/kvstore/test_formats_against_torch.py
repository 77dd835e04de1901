"""Our bit arithmetic beside torch's own types."""

import numpy as np
import torch

from llmserve.kvstore.formats import BlockShape, Quantize
from llmserve.kvstore.formats.elements import narrow, widen
from llmserve.kvstore.formats.quantize import Quantizer, quantized_bytes
from llmserve.kvstore.formats.shape import Element


def test_every_code_of_e4m3_is_read_as_torch_reads_it() -> None:
    codes = np.arange(256, dtype=np.uint8)
    quantized = np.concatenate((np.array([0x3F80], "<u2").view(np.uint8), codes))  # scale 1
    block = np.empty(1024, np.uint8)
    Quantizer(BlockShape.parse("float32 1(t256)"), Quantize.FP8).dequantize(quantized, block)
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    is_number = ~np.isnan(expected)
    assert (block.view(np.float32)[is_number] == expected[is_number]).all()


def test_e4m3_is_written_as_torch_writes_it() -> None:
    numbers = np.append(np.random.default_rng(3).normal(size=999) * 20, 448).astype(np.float32)
    numbers[:300] *= np.float32(2**-12)  # too small for e4m3's normal numbers
    numbers = np.clip(numbers, -448, 448)
    shape = BlockShape.parse("float32 1(t1000)")
    codes = np.empty(quantized_bytes(shape), np.uint8)
    assert Quantizer(shape, Quantize.FP8).quantize(numbers.view(np.uint8), codes)
    expected = torch.from_numpy(numbers).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert (codes[2:] == expected).all()


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    numbers = np.random.default_rng(3).integers(0, 2**32, 10_000, np.uint32).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    expected = torch.from_numpy(numbers.copy()).to(torch.bfloat16)
    bits, wide = np.empty(numbers.size, np.uint16), np.empty_like(numbers)
    narrow(Element.BFLOAT16, numbers, np.empty_like(numbers), bits)
    assert (bits == expected.view(torch.int16).numpy().view(np.uint16)).all()
    widen(Element.BFLOAT16, bits, wide)
    assert (wide == expected.float().numpy()).all()
