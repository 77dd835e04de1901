"""The elements of a block as float32 and back, in numpy: bfloat16 by its bits, for it is no type of numpy's.

Rounding is to nearest, ties to even. Callers work on pieces that fit into the processor's cache.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from llmserve.kvstore.formats.shape import Element

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
BitArray = npt.NDArray[np.uint32]
ScaleArray = npt.NDArray[np.uint16]  # bits of bfloat16
ByteArray = npt.NDArray[np.uint8]

# Larger magnitudes could become infinite when they come back from a quantized grid; such blocks stay raw.
LARGEST = {Element.BFLOAT16: 2.0**120, Element.FLOAT16: 60_000.0, Element.FLOAT32: 2.0**120}
STORAGE = {
    Element.BFLOAT16: np.uint16,
    Element.FLOAT16: np.float16,
    Element.FLOAT32: np.float32,
    Element.OPAQUE: np.uint8,
}


def widen(element: Element, values: Array, out: FloatArray) -> None:
    """values: of STORAGE[element], of the shape of out."""
    if element is not Element.BFLOAT16:
        np.copyto(out, values)
        return
    bits = out.view(np.uint32)
    np.copyto(bits, values)
    np.left_shift(bits, 16, out=bits)


def narrow(element: Element, values: FloatArray, spare: FloatArray, out: Array) -> None:
    """What is in values and in spare, of the same shape, is lost."""
    if element is not Element.BFLOAT16:
        np.copyto(out, values, casting="same_kind")
        return
    bits = values.view(np.uint32)
    round_off(bits, 16, spare.view(np.uint32))
    np.copyto(out, bits, casting="unsafe")


def round_off(bits: BitArray, places: int, spare: BitArray) -> None:
    """The bits of floats without so many low ones, moved to the right by as many places."""
    np.right_shift(bits, places, out=spare)
    np.bitwise_and(spare, 1, out=spare)
    np.add(spare, (1 << (places - 1)) - 1, out=spare)
    np.add(bits, spare, out=bits)
    np.right_shift(bits, places, out=bits)


def largest(element: Element, values: Array, axes: tuple[int, ...], spare: FloatArray) -> FloatArray:
    """The largest magnitude over these axes, which stay as 1. Infinite and not-a-number are largest."""
    bits = np.uint32 if element is Element.FLOAT32 else np.uint16
    magnitudes = spare.view(bits)[..., : values.shape[-1]]
    np.bitwise_and(values.view(bits), np.iinfo(bits).max >> 1, out=magnitudes)
    found = np.max(magnitudes, axis=axes, keepdims=True)
    wide = np.empty(found.shape, np.float32)
    widen(element, found.view(STORAGE[element]), wide)
    return wide
