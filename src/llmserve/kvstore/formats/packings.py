"""Shapes of the blocks that engines make, by the name of their layout.

The name is that of engines/connector/memory.py: the order of the axes, a slash, and how the attention kernel
packs a head. tests/integration/kvstore holds the shapes of vLLM's CPU kernels against what the kernels write.
"""

from math import gcd

from llmserve.kvstore.formats.shape import Axis, AxisKind, BlockShape, Element, Part, Section

_GROUP_ELEMENTS = 64
_AMX_TOKENS, _AMX_ELEMENTS, _PAIR = 16, 16, 2


def shape_of(
    layout: str, element: Element, *, layers: int, heads: int, tokens: int, head_size: int
) -> BlockShape:
    """Of blocks that hold K and V of so many layers and heads (of one rank), of equal size in each layer;
    tokens: of a kernel block, of which a block may have several (count them as layers). Layouts that are not
    known here get `grouped`: scales are shared by neighbours in memory then, not by channel."""
    axes, _, packing = layout.partition("/")
    parts = _parts(packing, tokens, head_size)
    if not parts or axes == "whole":
        return grouped(element, 2 * layers * heads * tokens * head_size * element.size_bytes)
    if "HN" in axes or heads == 1:
        return BlockShape(element, (Section(layers * heads, parts),))
    if "NH" in axes and packing == "kv":
        return BlockShape(element, (Section(layers, (_part(f"t{tokens} c{heads * 2 * head_size}"),)),))
    return grouped(element, 2 * layers * heads * tokens * head_size * element.size_bytes)


def grouped(element: Element, size_bytes: int, group_elements: int = _GROUP_ELEMENTS) -> BlockShape:
    """Of any block: one scale for so many neighbours in memory, or fewer where the size is no multiple."""
    elements = size_bytes // element.size_bytes
    group = gcd(elements, group_elements)
    return BlockShape(element, (Section(elements // group, (_part(f"t{group}"),)),))


def _parts(packing: str, tokens: int, head_size: int) -> tuple[Part, ...]:
    if packing == "kv":
        return (_part(f"t{tokens} c{2 * head_size}"),)
    if packing == "vec":
        return _part(f"c{head_size} t{tokens}"), _part(f"t{tokens} c{head_size}")
    if packing == "amx" and not tokens % _AMX_TOKENS and not head_size % _AMX_ELEMENTS:
        keys = f"t{tokens // _AMX_TOKENS} c{head_size // _PAIR} t{_AMX_TOKENS} c{_PAIR}"
        values = f"c{head_size // _AMX_ELEMENTS} t{tokens // _PAIR} c{_AMX_ELEMENTS} t{_PAIR}"
        return _part(keys), _part(values)
    return ()


def _part(text: str) -> Part:
    return Part(tuple(Axis(AxisKind(word[0]), int(word[1:])) for word in text.split()))
