"""Codes blocks in the memory of a GPU, by Triton's kernels on a stream of its own.

Importing this module imports torch and Triton. With TRITON_INTERPRET=1 in the environment it works on host
memory: that is how it is tested where no GPU is at hand.
"""

import numpy as np
import torch

from llmserve.kvstore.dram.client.quantized import ROWS, TAG_BYTES, Codes
from llmserve.kvstore.formats.gpu import GpuQuantizer
from llmserve.transfer.base import Int64Array, Region
from llmserve.transfer.devices import Copies
from llmserve.transfer.devices.kernels import copy_pieces

_ALIGNMENT = 8


class DeviceCoder:
    """See RowCoder. The block is made contiguous in the device's memory first, as the quantizer wants it."""

    def __init__(self, codes: Codes, copies: Copies, device: torch.device) -> None:
        """device: where the memory of `copies` is."""
        self._copies, self._device = copies, device
        self._rows = torch.zeros((ROWS, codes.row_bytes), dtype=torch.uint8, device=device)
        self._block = torch.empty(codes.shape.size_bytes, dtype=torch.uint8, device=device)
        self.rows = Region(self._rows.data_ptr(), self._rows.numel(), copies.memory)
        self._quantizer = GpuQuantizer(codes.shape, codes.grid, device)
        self._tag = torch.frombuffer(bytearray(codes.tag), dtype=torch.uint8).to(device)
        self._code_bytes = codes.code_bytes
        self._refused: dict[int, torch.Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def encode(self, starts: Int64Array, lengths: Int64Array, row: int) -> None:
        with torch.cuda.stream(self._stream):
            self._copy(starts, self._places(lengths), lengths)
            codes = self._rows[row, : self._code_bytes]
            self._refused[row] = self._quantizer.quantize(self._block, codes)
            self._rows[row, -TAG_BYTES:] = self._tag

    def decode(self, row: int, starts: Int64Array, lengths: Int64Array) -> None:
        with torch.cuda.stream(self._stream):
            self._quantizer.dequantize(self._rows[row, : self._code_bytes], self._block)
            self._copy(self._places(lengths), starts, lengths)

    def fits(self, row: int) -> bool:
        with torch.cuda.stream(self._stream):
            return not int(self._refused[row].item())

    def has_tag(self, row: int) -> bool:
        with torch.cuda.stream(self._stream):
            return bool(torch.equal(self._rows[row, -TAG_BYTES:], self._tag))

    def wait(self) -> None:
        with torch.cuda.stream(self._stream):
            mark = self._copies.mark()
        mark.wait()

    def _places(self, lengths: Int64Array) -> Int64Array:
        places: Int64Array = self._block.data_ptr() + np.cumsum(lengths) - lengths
        return places

    def _copy(self, sources: Int64Array, targets: Int64Array, lengths: Int64Array) -> None:
        table = np.stack((sources, targets, lengths))
        aligned = not np.bitwise_or.reduce(table, axis=None) % _ALIGNMENT
        copy_pieces(torch.from_numpy(table).to(self._device), int(lengths.max()), aligned=aligned)
