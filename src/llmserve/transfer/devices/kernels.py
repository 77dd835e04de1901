"""The Triton kernel that copies pieces of any length between any two addresses that the GPU reaches.

The driver's copies have a cost for each piece, which small pieces do not repay. Importing this module imports
Triton. With TRITON_INTERPRET=1 in the environment the kernel runs on host memory.
"""

from typing import Any

import triton
import triton.language as tl

_BLOCK_WORDS = 1024
_WORD_BYTES = 8


@triton.jit  # type: ignore[untyped-decorator]
def _copy_pieces(  # type: ignore[no-untyped-def]
    table, count, word_bytes: tl.constexpr, block_words: tl.constexpr,
):  # fmt: skip
    """Copies one block of one piece. table: sources, targets and lengths, `count` int64 numbers each."""
    piece = tl.program_id(0)
    source, target = tl.load(table + piece), tl.load(table + count + piece)
    length = tl.load(table + 2 * count + piece)
    word = tl.program_id(1).to(tl.int64) * block_words + tl.arange(0, block_words)
    places = word * word_bytes
    inside = places < length
    if word_bytes == 8:
        sources = (source + places).to(tl.pointer_type(tl.int64))
        targets = (target + places).to(tl.pointer_type(tl.int64))
    else:
        sources = (source + places).to(tl.pointer_type(tl.int8))
        targets = (target + places).to(tl.pointer_type(tl.int8))
    tl.store(targets, tl.load(sources, mask=inside), mask=inside)


def copy_pieces(table: Any, longest: int, *, aligned: bool) -> None:
    """Copies on the current stream. table: an int64 tensor of the device with a row each for the addresses to
    read, those to write, and the lengths. longest: the greatest length. aligned: whether all of them are
    multiples of 8."""
    word_bytes = _WORD_BYTES if aligned else 1
    count = table.shape[1]
    blocks = triton.cdiv(longest, word_bytes * _BLOCK_WORDS)
    _copy_pieces[count, blocks](table, count, word_bytes=word_bytes, block_words=_BLOCK_WORDS)
