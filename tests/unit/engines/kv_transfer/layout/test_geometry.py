from dataclasses import replace
from typing import Any

import pytest

from llmserve.core.errors import TransferError
from llmserve.engines.kv_transfer import HeadShard, KvGeometry, KvPart

PARTS = (KvPart(8, 1, 2), KvPart(1, 1, 16))  # 32 bytes of a token and head
MINE = KvGeometry((2 * 16 * 32,) * 3, 16, "bfloat16", "LBHNC/vec", "m", HeadShard(4, 2, 1), PARTS, 16)
OPAQUE = replace(MINE, layout="LBHNC/neon.16", parts=())


def resized(geometry: KvGeometry, *, tokens: int = 16, ranks: int = 2) -> KvGeometry:
    shard = HeadShard(geometry.shard.kv_heads, ranks, 0)
    size = len(shard.heads) * tokens * 32
    return replace(
        geometry,
        block_bytes=(size,) * 3,
        block_size_tokens=tokens,
        shard=shard,
        kernel_block_tokens=tokens,
    )


def test_equal_shapes_fit() -> None:
    assert MINE.obstacle(MINE) == OPAQUE.obstacle(OPAQUE) == ""


@pytest.mark.parametrize("tokens", [16, 32, 48])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_other_sizes_fit_where_a_block_can_be_cut(tokens: int, ranks: int) -> None:
    peer = resized(MINE, tokens=tokens, ranks=ranks)
    assert MINE.obstacle(peer) == peer.obstacle(MINE) == ""


def test_heads_that_lie_outside_need_no_knowledge_of_their_inside() -> None:
    assert OPAQUE.obstacle(resized(OPAQUE, ranks=1)) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "other"}, "model differs: 'other' there, 'm' here"),
        ({"kv_dtype": "fp8"}, "kv_dtype differs: 'fp8' there, 'bfloat16' here"),
        ({"layout": "LBHNC/amx"}, "layout differs: 'LBHNC/amx' there, 'LBHNC/vec' here"),
        ({"block_bytes": (1024,) * 2}, "number of layers differs: 2 there, 3 here"),
        ({"shard": HeadShard(2, 1, 0)}, "number of KV heads differs: 2 there, 4 here"),
        ({"parts": (KvPart(1, 1, 32),)}, "packing differs"),
        ({"block_bytes": (1024, 1024, 512), "parts": ()}, "packing differs"),
    ],
)
def test_what_must_be_equal(changes: dict[str, Any], words: str) -> None:
    assert words in MINE.obstacle(replace(MINE, **changes))


def test_layers_of_another_width() -> None:
    wide = replace(OPAQUE, block_bytes=(1024, 1024, 2048))
    assert "bytes of a token and head differ: 64 there, 32 here" in OPAQUE.obstacle(wide)


def test_blocks_that_cannot_be_cut_by_tokens() -> None:
    assert OPAQUE.obstacle(resized(OPAQUE, tokens=32)) == (
        "blocks of 32 tokens with 2 of 4 KV heads there, blocks of 16 tokens with 2 of 4 KV heads here, "
        "and blocks of layout 'LBHNC/neon.16' can only be copied whole"
    )


@pytest.mark.parametrize("layout", ["LBNHC/mystery.16", "whole/neon.16x2"])
def test_blocks_that_cannot_be_cut_by_heads(layout: str) -> None:
    mine = replace(OPAQUE, layout=layout)
    assert "can only be copied whole" in mine.obstacle(resized(mine, ranks=1))


def test_heads_that_lie_nobody_knows_where() -> None:
    mine = replace(MINE, layout="whole/vec")
    assert "layout 'whole/vec' does not say where a head lies" in mine.obstacle(resized(mine, tokens=32))
    single = resized(mine, ranks=4)
    assert single.obstacle(resized(mine, tokens=32, ranks=8)) == "", "there is only one"


def test_kernel_blocks_count_not_the_engines_blocks() -> None:
    """Blocks of 16 and of 32 tokens, both of kernel blocks of 16: nothing has to be cut."""
    peer = replace(resized(OPAQUE, tokens=32), kernel_block_tokens=16)
    assert OPAQUE.obstacle(peer) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"block_bytes": ()},
        {"block_bytes": (0,)},
        {"block_size_tokens": 0},
        {"kernel_block_tokens": 5},
        {"block_bytes": (1023,) * 3},
        {"parts": (KvPart(1, 1, 31),)},
        {"parts": (KvPart(1, 3, 96),)},
        {"layout": "LBNHC/vec"},
    ],
)
def test_a_geometry_without_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TransferError):
        replace(MINE, **changes)


def test_it_travels_as_json_does() -> None:
    message = MINE.to_message()
    message["block_bytes"] = list(message["block_bytes"])
    message["parts"] = list(message["parts"])
    assert KvGeometry.from_message(message) == MINE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_bytes", 7),
        ("block_bytes", [1.5]),
        ("block_bytes", [1] * 5000),
        ("block_bytes", [True]),
        ("block_bytes", [1 << 40]),
        ("block_size_tokens", "16"),
        ("block_size_tokens", -16),
        ("kv_dtype", None),
        ("layout", "x" * 2000),
        ("shard", [4, 2, 1]),
        ("shard", {"kv_heads": 4, "tensor_parallel": 3, "rank": 0}),
        ("shard", {"kv_heads": 4, "tensor_parallel": 1 << 20, "rank": 0}),
        ("shard", {"kv_heads": 4}),
        ("parts", [{"rows": 0, "group_tokens": 1, "group_bytes": 1}]),
        ("parts", [7]),
        ("parts", None),
        ("parts", {}),
    ],
)
def test_a_message_without_sense_is_refused(name: str, value: object) -> None:
    with pytest.raises(TransferError, match="malformed"):
        KvGeometry.from_message({**MINE.to_message(), name: value})
    without = MINE.to_message()
    del without[name]
    with pytest.raises(TransferError, match="malformed"):
        KvGeometry.from_message(without)
