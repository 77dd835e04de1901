"""What the bytes of a block mean, as far as a codec must know it.

A block is sections one after the other; a section is the same parts back to back, `repeats` times; a part
is one array, its axes in memory order, each over channels or over tokens. Quantization shares one scale
among all tokens of a channel; every repeat and part has scales of its own.

As text (`BlockShape.text`, in every header): "bfloat16 90(c64 t128|t128 c64)" is 30 layers of 3 heads, each K
of 64 channels by 128 tokens, then V of 128 tokens by 64 channels.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import gcd, prod

from llmserve.core.errors import FormatUnknown

_MAX_BLOCK_BYTES = 1 << 31
_SECTION = re.compile(r"(\d{1,9})\(([ct0-9 |]+)\)")
_AXIS = re.compile(r"([ct])(\d{1,9})")


class Element(StrEnum):
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    OPAQUE = "opaque"  # bytes with no number in them that we could read, as of caches already in fp8

    @property
    def size_bytes(self) -> int:
        return {Element.OPAQUE: 1, Element.FLOAT32: 4}.get(self, 2)


class AxisKind(StrEnum):
    CHANNEL = "c"
    TOKEN = "t"


@dataclass(frozen=True, slots=True)
class Axis:
    kind: AxisKind
    size: int


@dataclass(frozen=True, slots=True)
class BlockPart:
    axes: tuple[Axis, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def elements(self) -> int:
        return prod(self.sizes)

    @property
    def channels(self) -> int:
        return prod(axis.size for axis in self.axes if axis.kind is AxisKind.CHANNEL)

    @property
    def token_axes(self) -> tuple[int, ...]:
        return tuple(place for place, axis in enumerate(self.axes) if axis.kind is AxisKind.TOKEN)

    def text(self) -> str:
        return " ".join(f"{axis.kind}{axis.size}" for axis in self.axes)


@dataclass(frozen=True, slots=True)
class Section:
    repeats: int
    parts: tuple[BlockPart, ...]

    @property
    def repeat_elements(self) -> int:
        return sum(part.elements for part in self.parts)

    @property
    def elements(self) -> int:
        return self.repeats * self.repeat_elements

    def text(self) -> str:
        return f"{self.repeats}({'|'.join(part.text() for part in self.parts)})"


@dataclass(frozen=True, slots=True)
class Slab:
    """One part in all repeats of its section. In elements: the section begins at section_start of the block,
    repeat r of the part at r * stride + offset of the section. Its scales, one for each repeat and channel,
    begin at scale_start of all scales."""

    part: BlockPart
    repeats: int
    section_start: int
    stride: int
    offset: int
    scale_start: int


@dataclass(frozen=True, slots=True)
class BlockShape:
    element: Element
    sections: tuple[Section, ...]

    @property
    def elements(self) -> int:
        return sum(section.elements for section in self.sections)

    @property
    def size_bytes(self) -> int:
        return self.elements * self.element.size_bytes

    @property
    def scales(self) -> int:
        return sum(slab.repeats * slab.part.channels for slab in self.slabs())

    def slabs(self) -> Iterator[Slab]:
        start = scale_start = 0
        for section in self.sections:
            offset = 0
            for part in section.parts:
                yield Slab(part, section.repeats, start, section.repeat_elements, offset, scale_start)
                offset += part.elements
                scale_start += section.repeats * part.channels
            start += section.elements

    def text(self) -> str:
        return " ".join([self.element, *(section.text() for section in self.sections)])

    @classmethod
    def parse(cls, text: str) -> "BlockShape":
        """Errors: FormatUnknown for what `text` cannot have made."""
        word, _, rest = text.partition(" ")
        sections = [_section(match) for match in _SECTION.finditer(rest)]
        try:
            shape = cls(Element(word), tuple(sections))
        except ValueError:
            raise FormatUnknown(f"elements unknown: {word[:40]!r}") from None
        if shape.text() != text or not 0 < shape.size_bytes < _MAX_BLOCK_BYTES:
            raise FormatUnknown(f"not the shape of a block: {text[:80]!r}")
        return shape


def _section(match: re.Match[str]) -> Section:
    return Section(int(match[1]), tuple(_part(text) for text in match[2].split("|")))


def _part(text: str) -> BlockPart:
    return BlockPart(tuple(Axis(AxisKind(kind), int(size)) for kind, size in _AXIS.findall(text)))


_GROUP_ELEMENTS = 64
_AMX_TOKENS, _AMX_ELEMENTS, _PAIR = 16, 16, 2


def shape_of(
    layout: str, element: Element, *, layers: int, heads: int, tokens: int, head_size: int
) -> BlockShape:
    """The shape of blocks with K and V of so many layers and heads (of one rank), equal in each layer.

    tokens: of a kernel block, of which a block may have several (count them as layers). A layout that is not
    known here gets `grouped`: neighbours in memory share a scale then, not the tokens of a channel."""
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
    """A shape for any block: so many neighbours in memory share a scale, or fewer for an odd size."""
    elements = size_bytes // element.size_bytes
    group = gcd(elements, group_elements)
    return BlockShape(element, (Section(elements // group, (_part(f"t{group}"),)),))


def _parts(packing: str, tokens: int, head_size: int) -> tuple[BlockPart, ...]:
    if packing == "kv":
        return (_part(f"t{tokens} c{2 * head_size}"),)
    if packing == "vec":
        return _part(f"c{head_size} t{tokens}"), _part(f"t{tokens} c{head_size}")
    if packing == "amx" and not tokens % _AMX_TOKENS and not head_size % _AMX_ELEMENTS:
        keys = f"t{tokens // _AMX_TOKENS} c{head_size // _PAIR} t{_AMX_TOKENS} c{_PAIR}"
        values = f"c{head_size // _AMX_ELEMENTS} t{tokens // _PAIR} c{_AMX_ELEMENTS} t{_PAIR}"
        return _part(keys), _part(values)
    return ()
