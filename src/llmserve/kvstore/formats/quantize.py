"""Numbers to one byte each and back: a scale for each channel of a part, shared by the tokens of the block.

Quantized, a block is its scales (bfloat16, as `Slab.scale_start` says: part by part, repeat by repeat, the
channels in memory order), then one code for each element, in the order of the block. A number is code times
scale:
  INT8  codes -127 to 127, rounded to nearest; scale = largest magnitude / 127
  FP8   e4m3 (its largest number is 448, no infinity); scale = largest magnitude / 448
Scales are rounded up, so that nothing is clipped. All is the same to the bit here and on a GPU (`gpu`). numpy
lets go of the GIL in each pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from llmserve.core.errors import StartFailed
from llmserve.kvstore.formats.elements import (
    LARGEST,
    STORAGE,
    Array,
    ByteArray,
    FloatArray,
    ScaleArray,
    largest,
    narrow,
    round_off,
    widen,
)
from llmserve.kvstore.formats.header import Quantize
from llmserve.kvstore.formats.shape import BlockShape, Element, Slab

SCALE_BYTES = 2
TOP = {Quantize.INT8: 127.0, Quantize.FP8: 448.0}
LEAST_SCALE = 2.0**-100  # of channels that are zero, or might as well be
_TILE_ELEMENTS = 96 << 10  # as float32 they fit into the second-level cache of most processors
# Adding it leaves an integer below 2**22 in the low bits of a float32, rounded to nearest, ties to even.
_ROUNDER = np.float32(1.5 * 2**23)
_E4M3_BIAS = np.float32(2.0**-120)  # between the exponents of float32 and of e4m3
_E4M3_SHIFT = 20  # between their mantissas
_E4M3_SIGN_SHIFT = 31 - _E4M3_SHIFT - 7  # of a sign that has moved by that, to bit 7


def quantized_bytes(shape: BlockShape) -> int:
    return SCALE_BYTES * shape.scales + shape.elements


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some repeats of a slab. rows: of the section, shape [repeats, elements of a repeat]."""

    section: slice
    repeat_elements: int
    rows: slice
    columns: slice
    sizes: tuple[int, ...]  # repeats, then the axes of the part
    token_axes: tuple[int, ...]
    scales: slice
    scale_sizes: tuple[int, ...]  # the same with the token axes as 1

    def of(self, flat: Array) -> Array:
        """A view."""
        rows = flat[self.section].reshape(-1, self.repeat_elements)
        return rows[self.rows, self.columns].reshape(self.sizes)


class Quantizer:
    """For blocks of one shape, in one grid. Owns scratch memory: for one thread at a time."""

    def __init__(self, shape: BlockShape, grid: Quantize) -> None:
        """Errors: StartFailed for elements that have no numbers."""
        if shape.element is Element.OPAQUE:
            raise StartFailed(f"blocks of {shape.element} elements cannot be quantized to {grid}")
        self._element = shape.element
        self._grid = grid
        self._scale_bytes = SCALE_BYTES * shape.scales
        self._tiles = [tile for slab in shape.slabs() for tile in _tiles(slab)]
        largest_tile = max(prod(tile.sizes) for tile in self._tiles)
        self._numbers, self._spare = np.empty((2, largest_tile), np.float32)

    def quantize(self, block: ByteArray, out: ByteArray) -> bool:
        """out: quantized_bytes. False: the block has magnitudes above LARGEST, infinities or NaN, which no
        scale carries; then out holds garbage."""
        values = block.view(STORAGE[self._element])
        scales, codes = self._split(out)
        return all(self._encode(tile, values, codes, scales) for tile in self._tiles)

    def dequantize(self, quantized: ByteArray, block: ByteArray) -> None:
        values = block.view(STORAGE[self._element])
        scales, codes = self._split(quantized)
        for tile in self._tiles:
            self._decode(tile, values, codes, scales)

    def _split(self, quantized: ByteArray) -> tuple[ScaleArray, ByteArray]:
        return quantized[: self._scale_bytes].view(np.uint16), quantized[self._scale_bytes :]

    def _encode(self, tile: _Tile, values: Array, codes: ByteArray, scales: ScaleArray) -> bool:
        numbers, spare = self._scratch(tile)
        tops = largest(self._element, tile.of(values), tile.token_axes, spare)
        if not (tops <= LARGEST[self._element]).all():
            return False
        bits = _scale_bits(tops, TOP[self._grid])
        np.copyto(scales[tile.scales], (bits >> 16).ravel(), casting="unsafe")
        widen(self._element, tile.of(values), numbers)
        np.multiply(numbers, np.float32(1) / bits.view(np.float32), out=numbers)
        _ENCODERS[self._grid](numbers, spare, tile.of(codes))
        return True

    def _decode(self, tile: _Tile, values: Array, codes: ByteArray, scales: ScaleArray) -> None:
        numbers, spare = self._scratch(tile)
        steps = np.empty(tile.scale_sizes, np.float32)
        widen(Element.BFLOAT16, scales[tile.scales].reshape(tile.scale_sizes), steps)
        _DECODERS[self._grid](tile.of(codes), spare, numbers)
        np.multiply(numbers, steps, out=numbers)
        narrow(self._element, numbers, spare, tile.of(values))

    def _scratch(self, tile: _Tile) -> tuple[FloatArray, FloatArray]:
        size = prod(tile.sizes)
        return self._numbers[:size].reshape(tile.sizes), self._spare[:size].reshape(tile.sizes)


def _tiles(slab: Slab) -> Iterator[_Tile]:
    part = slab.part
    most = max(1, _TILE_ELEMENTS // part.elements)
    scale_sizes = [1 if place in part.token_axes else size for place, size in enumerate(part.sizes)]
    for first in range(0, slab.repeats, most):
        count = min(most, slab.repeats - first)
        scale = slab.scale_start + first * part.channels
        yield _Tile(
            section=slice(slab.section_start, slab.section_start + slab.repeats * slab.stride),
            repeat_elements=slab.stride,
            rows=slice(first, first + count),
            columns=slice(slab.offset, slab.offset + part.elements),
            sizes=(count, *part.sizes),
            token_axes=tuple(place + 1 for place in part.token_axes),
            scales=slice(scale, scale + count * part.channels),
            scale_sizes=(count, *scale_sizes),
        )


def _scale_bits(top: FloatArray, steps: float) -> npt.NDArray[np.uint32]:
    """Rounds up to bfloat16, which is a float32 whose low half is zero."""
    scales = np.maximum(top / np.float32(steps), np.float32(LEAST_SCALE))
    bits: npt.NDArray[np.uint32] = scales.view(np.uint32)
    bits += np.uint32(0xFFFF)
    bits &= np.uint32(0xFFFF0000)
    return bits


def _to_int8(numbers: FloatArray, spare: FloatArray, codes: ByteArray) -> None:
    np.add(numbers, _ROUNDER, out=numbers)
    np.copyto(codes, numbers.view(np.uint32), casting="unsafe")


def _from_int8(codes: ByteArray, spare: FloatArray, numbers: FloatArray) -> None:
    np.copyto(numbers, codes.view(np.int8))


def _to_e4m3(numbers: FloatArray, spare: FloatArray, codes: ByteArray) -> None:
    """With the bias of e4m3 in its exponent, a float32 need only lose the low bits of its mantissa; numbers
    too small for e4m3's normal ones are then too small for float32's as well, and both lose bits alike."""
    np.multiply(numbers, _E4M3_BIAS, out=numbers)
    bits, other = numbers.view(np.uint32), spare.view(np.uint32)
    round_off(bits, _E4M3_SHIFT, other)
    np.right_shift(bits, _E4M3_SIGN_SHIFT, out=other)  # the sign is now in its place
    np.bitwise_and(other, 0x80, out=other)
    np.bitwise_and(bits, 0x7F, out=bits)
    np.bitwise_or(bits, other, out=bits)
    np.copyto(codes, bits, casting="unsafe")


def _from_e4m3(codes: ByteArray, spare: FloatArray, numbers: FloatArray) -> None:
    bits, signs = numbers.view(np.uint32), spare.view(np.uint32)
    np.copyto(bits, codes)
    np.bitwise_and(bits, 0x80, out=signs)
    np.left_shift(signs, 24, out=signs)
    np.bitwise_and(bits, 0x7F, out=bits)
    np.left_shift(bits, _E4M3_SHIFT, out=bits)
    np.bitwise_or(bits, signs, out=bits)
    np.multiply(numbers, 1 / _E4M3_BIAS, out=numbers)


_ENCODERS = {Quantize.INT8: _to_int8, Quantize.FP8: _to_e4m3}
_DECODERS = {Quantize.INT8: _from_int8, Quantize.FP8: _from_e4m3}
