"""The same quantization in the memory of a GPU, in Triton: for a worker that moves codes, not numbers.

What `quantize` makes is laid out as by `quantize.Quantizer`, and each reads what the other made.
Importing this module imports torch and Triton, which the kvmanager does without. With TRITON_INTERPRET=1 in
the environment the kernels run on CPU tensors, slowly: that is how they are tested where no GPU is at hand.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from llmserve.core.errors import StartFailed
from llmserve.kvstore.formats.elements import LARGEST
from llmserve.kvstore.formats.header import Quantize
from llmserve.kvstore.formats.kernels import dequantize_kernel, quantize_kernel
from llmserve.kvstore.formats.quantize import LEAST_SCALE, SCALE_BYTES, TOP, quantized_bytes
from llmserve.kvstore.formats.shape import AxisKind, BlockPart, BlockShape, Element, Slab

_TILE_ELEMENTS = 4096
_DTYPES = {
    Element.BFLOAT16: torch.int16,  # its bits: both sides of the bus round by the same rule
    Element.FLOAT16: torch.float16,
    Element.FLOAT32: torch.float32,
}


@dataclass(frozen=True, slots=True)
class _Launch:
    """One slab. tokens, channels: where each of them lies in the part, int64 tensors on the device."""

    slab: Slab
    tokens: torch.Tensor
    channels: torch.Tensor

    @property
    def token_block(self) -> int:
        return int(triton.next_power_of_2(len(self.tokens)))

    @property
    def channel_block(self) -> int:
        most = max(1, _TILE_ELEMENTS // self.token_block)
        return int(min(most, triton.next_power_of_2(len(self.channels))))

    @property
    def grid(self) -> tuple[int, int]:
        return self.slab.repeats, int(triton.cdiv(len(self.channels), self.channel_block))

    def arguments(self) -> dict[str, Any]:
        slab = self.slab
        return {
            "token_offsets": self.tokens,
            "channel_offsets": self.channels,
            "token_count": len(self.tokens),
            "channel_count": len(self.channels),
            "start": slab.section_start + slab.offset,
            "stride": slab.stride,
            "scale_start": slab.scale_start,
            "token_block": self.token_block,
            "channel_block": self.channel_block,
        }


class GpuQuantizer:
    """For blocks of one shape, in one grid, on one device. Everything runs on the current stream; nothing
    waits, but for whoever reads what `quantize` returns. Errors: StartFailed."""

    def __init__(self, shape: BlockShape, grid: Quantize, device: torch.device) -> None:
        if shape.element not in _DTYPES:
            raise StartFailed(f"blocks of {shape.element} elements cannot be quantized to {grid}")
        self._shape = shape
        self._grid = grid
        self._device = device
        self._launches = [_launch(slab, device) for slab in shape.slabs()]
        self._kinds = {
            "is_fp8": grid is Quantize.FP8,
            "is_bfloat16": shape.element is Element.BFLOAT16,
            "enable_fp_fusion": False,  # rounds as the CPU does
        }

    @property
    def quantized_bytes(self) -> int:
        return quantized_bytes(self._shape)

    def quantize(self, block: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Both uint8, contiguous, of one dimension. The result is one int32 on the device, not 0 where the
        block cannot be quantized (`quantize.Quantizer`): then out holds garbage."""
        values = block.view(_DTYPES[self._shape.element])
        scales, codes = self._split(out)
        refused = torch.zeros(1, dtype=torch.int32, device=self._device)
        for launch in self._launches:
            quantize_kernel[launch.grid](
                values,
                codes,
                scales,
                refused,
                **launch.arguments(),
                top=TOP[self._grid],
                least=LEAST_SCALE,
                largest=LARGEST[self._shape.element],
                **self._kinds,
            )
        return refused

    def dequantize(self, quantized: torch.Tensor, block: torch.Tensor) -> None:
        """As above. Codes that `quantize` cannot have made give garbage; nothing else is touched."""
        values = block.view(_DTYPES[self._shape.element])
        scales, codes = self._split(quantized)
        for launch in self._launches:
            dequantize_kernel[launch.grid](values, codes, scales, **launch.arguments(), **self._kinds)

    def _split(self, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale_bytes = SCALE_BYTES * self._shape.scales
        return quantized[:scale_bytes].view(torch.int16), quantized[scale_bytes:]


def _launch(slab: Slab, device: torch.device) -> _Launch:
    tokens, channels = (_offsets(slab.part, kind).to(device) for kind in (AxisKind.TOKEN, AxisKind.CHANNEL))
    return _Launch(slab, tokens, channels)


def _offsets(part: BlockPart, kind: AxisKind) -> torch.Tensor:
    """In elements, of each index over the axes of one kind, the others being 0."""
    places = torch.arange(part.elements).reshape(part.sizes)
    for axis, found in enumerate(part.axes):
        if found.kind is not kind:
            places = places.narrow(axis, 0, 1)
    return places.flatten().contiguous()  # flatten may leave a stride
