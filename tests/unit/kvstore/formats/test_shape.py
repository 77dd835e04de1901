"""Shapes of blocks, and their texts."""

import pytest

from llmserve.core.errors import FormatUnknown
from llmserve.kvstore.formats import BlockShape, Element, grouped, shape_of

TEXTS = [
    "bfloat16 90(c64 t128|t128 c64)",
    "float32 2(t16 c8) 3(t4 c2|c5)",
    "opaque 7(t64)",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_says_the_whole_shape(text: str) -> None:
    assert BlockShape.parse(text).text() == text


def test_sizes() -> None:
    shape = BlockShape.parse("float32 2(t16 c8) 3(t4 c2|c5)")
    assert shape.elements == 2 * 128 + 3 * (8 + 5)
    assert shape.size_bytes == 4 * shape.elements
    assert shape.scales == 2 * 8 + 3 * 2 + 3 * 5


def test_slabs_cover_each_element_once() -> None:
    shape = BlockShape.parse("float32 2(t16 c8) 3(t4 c2|c5)")
    found = [
        slab.section_start + repeat * slab.stride + slab.offset + element
        for slab in shape.slabs()
        for repeat in range(slab.repeats)
        for element in range(slab.part.elements)
    ]
    assert sorted(found) == list(range(shape.elements))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bfloat16",
        "complex64 1(t2)",
        "bfloat16 0(t2)",
        "bfloat16 1(t0)",
        "bfloat16 1(x2)",
        "bfloat16 1(t2",
        "bfloat16 1(t2) and more",
        "bfloat16 999999999(t999999999)",
    ],
)
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(FormatUnknown):
        BlockShape.parse(text)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("LBHNC/vec", "bfloat16 6(c32 t64|t64 c32)"),
        ("LBHNC/amx", "bfloat16 6(t4 c16 t16 c2|c2 t32 c16 t2)"),
        ("LBHNC/kv", "bfloat16 6(t64 c64)"),
        ("LBNHC/kv", "bfloat16 2(t64 c192)"),
        ("LBHNC/neon", "bfloat16 384(t64)"),
        ("LBNHC/vec", "bfloat16 384(t64)"),
        ("whole/vecx3", "bfloat16 384(t64)"),
    ],
)
def test_shapes_by_name_of_the_layout(layout: str, text: str) -> None:
    shape = shape_of(layout, Element.BFLOAT16, layers=2, heads=3, tokens=64, head_size=32)
    assert shape.text() == text
    assert shape.size_bytes == 2 * 2 * 3 * 2 * 64 * 32


@pytest.mark.parametrize("size", [64, 6400, 6402, 2])
def test_any_size_can_be_grouped(size: int) -> None:
    assert grouped(Element.BFLOAT16, size).size_bytes == size
