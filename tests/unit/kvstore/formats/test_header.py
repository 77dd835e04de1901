"""Headers: what comes back is what was stored, or an error."""

import json
import struct

import pytest
import xxhash

from llmserve.core.errors import BlockDamaged, BlockUnreadable, FormatUnknown
from llmserve.kvstore.formats.header import MAX_HEADER_BYTES, VERSION, Compress, Header, Piece, Quantize, Seal

HEADER = Header(
    "bfloat16 90(c64 t128|t128 c64)",
    Quantize.INT8,
    (Piece(Compress.NONE, 10), Piece(Compress.ZSTD, 7)),
    Seal("2026-01", bytes(range(12))),
)


def signed(body: bytes, version: int = VERSION) -> bytes:
    head = struct.pack("<4sHH", b"LSKB", version, len(body)) + body
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head))


@pytest.mark.parametrize("header", [HEADER, Header("opaque 1(t8)", Quantize.NONE, (), None)])
def test_round_trip(header: Header) -> None:
    raw = header.pack()
    assert Header.unpack(raw) == header
    assert len(raw) <= MAX_HEADER_BYTES


def test_every_flipped_bit_is_noticed() -> None:
    raw = HEADER.pack()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BlockUnreadable):
            Header.unpack(bytes(damaged))


def test_every_cut_is_noticed() -> None:
    raw = HEADER.pack()
    for length in range(len(raw)):
        with pytest.raises(BlockDamaged):
            Header.unpack(raw[:length])


def test_a_later_version_is_unknown_not_damaged() -> None:
    with pytest.raises(FormatUnknown, match="version 2"):
        Header.unpack(signed(b"{}", version=2))


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b"{}",
        b"[" * 60_000,
        json.dumps({"shape": "x", "quantize": "int4"}).encode(),
        json.dumps({"shape": "x", "quantize": "none", "planes": [["lz4", 3]]}).encode(),
        json.dumps({"shape": "x", "quantize": "none", "planes": [["zstd", -3]]}).encode(),
        json.dumps({"shape": "x", "quantize": "none", "key": "k", "nonce": 12}).encode(),
    ],
)
def test_what_this_release_does_not_know_is_unknown(body: bytes) -> None:
    with pytest.raises(FormatUnknown):
        Header.unpack(signed(body))


def test_version_1_is_read_for_ever() -> None:
    """As stored by the release that introduced it: never change these bytes."""
    stored = bytes.fromhex(SAMPLE_1)
    assert Header.unpack(stored) == Header("bfloat16 2(c2 t4|t4 c2)", Quantize.FP8, (), None)


SAMPLE_1 = (
    "4c534b42010034007b227368617065223a2262666c6f6174313620322863322074347c7434206332"
    "29222c227175616e74697a65223a22667038227dc914aa20e96923b3"
)
