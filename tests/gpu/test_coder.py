"""Blocks of a GPU become the same rows as those of the host, and the other way."""

import numpy as np
import pytest
import torch

from llmserve.kvstore.dram.client.quantized import Codes, HostCoder
from llmserve.kvstore.formats import BlockShape, Quantize
from llmserve.transfer.base import Int64Array
from llmserve.transfer.devices import Bytes, HostCopies
from llmserve.transfer.devices.cuda import CudaCopies

triton = pytest.importorskip("triton", reason="no Triton")

from llmserve.kvstore.dram.client.device_coder import DeviceCoder  # noqa: E402 - not without Triton
from tests.gpu.test_formats import block_of, each_grid, each_shape  # noqa: E402

PIECES, ROW, GAP = 4, 3, 24  # of a block; of the buffer; bytes between pieces


def coder_of(codes: Codes, device: torch.device) -> DeviceCoder:
    return DeviceCoder(codes, CudaCopies(0) if device.type == "cuda" else HostCopies(), device)


def places(shape: BlockShape) -> tuple[Int64Array, Int64Array, int]:
    """Offsets and lengths of the pieces of a block, the last one first, and the size of memory for them."""
    each = shape.size_bytes // PIECES
    offsets: Int64Array = np.arange(PIECES)[::-1] * (each + GAP)
    return offsets, np.full(PIECES, each), PIECES * (each + GAP)


def in_pieces(block: Bytes, shape: BlockShape) -> Bytes:
    offsets, _, size = places(shape)
    memory = np.full(size, 0x55, np.uint8)
    for offset, piece in zip(offsets, np.split(block, PIECES), strict=True):
        memory[offset : offset + len(piece)] = piece
    return memory


@each_grid
@each_shape
def test_rows_are_those_of_the_host(text: str, grid: Quantize, device: torch.device) -> None:
    shape = BlockShape.parse(text)
    codes, memory = Codes(shape, grid), in_pieces(block_of(shape), shape)
    offsets, lengths, _ = places(shape)
    host, there, copied = HostCoder(codes), coder_of(codes, device), torch.from_numpy(memory).to(device)
    host.encode(memory.ctypes.data + offsets, lengths, ROW)
    there.encode(copied.data_ptr() + offsets, lengths, ROW)
    there.wait()
    assert host.fits(ROW)
    assert there.fits(ROW)
    assert there.has_tag(ROW)
    assert np.array_equal(there._rows.cpu().numpy(), host._rows), "and no other row was touched"


@each_grid
@each_shape
def test_blocks_are_those_of_the_host(text: str, grid: Quantize, device: torch.device) -> None:
    shape = BlockShape.parse(text)
    codes, memory = Codes(shape, grid), in_pieces(block_of(shape), shape)
    offsets, lengths, size = places(shape)
    host, there = HostCoder(codes), coder_of(codes, device)
    host.encode(memory.ctypes.data + offsets, lengths, ROW)
    there._rows.copy_(torch.from_numpy(host._rows))
    memory[:] = 0x77
    found = torch.full((size,), 0x77, dtype=torch.uint8, device=device)
    host.decode(ROW, memory.ctypes.data + offsets, lengths)
    there.decode(ROW, found.data_ptr() + offsets, lengths)
    there.wait()
    assert np.array_equal(found.cpu().numpy(), memory), "and nothing lies between the pieces"


def test_what_is_no_block_of_this_format(device: torch.device) -> None:
    shape = BlockShape.parse("bfloat16 2(t16 c8)")
    block = block_of(shape)
    torch.from_numpy(block).view(torch.bfloat16)[7] = torch.nan
    coder, copied = coder_of(Codes(shape, Quantize.INT8), device), torch.from_numpy(block).to(device)
    assert not coder.has_tag(0)
    coder.encode(np.array([copied.data_ptr()]), np.array([len(block)]), 0)
    assert not coder.fits(0)
