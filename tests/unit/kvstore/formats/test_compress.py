"""Planes."""

from contextlib import suppress

import numpy as np
import numpy.typing as npt
import pytest
import zstandard

from llmserve.core.errors import BlockDamaged
from llmserve.kvstore.formats.compress import Planes
from llmserve.kvstore.formats.header import Compress, Piece

Bytes = npt.NDArray[np.uint8]


def noise(size: int) -> Bytes:
    return np.random.default_rng(1).integers(0, 256, size, np.uint8)


def kv(element_bytes: int, count: int = 4096) -> Bytes:
    """Noise, but for the highest byte of each element."""
    data = noise(element_bytes * count)
    data[element_bytes - 1 :: element_bytes] &= 3
    return data


def packed(data: Bytes, element_bytes: int) -> tuple[tuple[Piece, ...], Bytes]:
    out = np.empty(data.size, np.uint8)
    pieces = Planes().pack(data, element_bytes, out)
    return pieces, out[: sum(piece.length_bytes for piece in pieces)]


@pytest.mark.parametrize("element_bytes", [1, 2, 4])
def test_round_trip(element_bytes: int) -> None:
    data, back = kv(element_bytes), np.zeros(element_bytes * 4096, np.uint8)
    pieces, payload = packed(data, element_bytes)
    Planes().unpack(payload, pieces, element_bytes, back)
    assert (back == data).all()
    assert payload.size < data.size - 2000


@pytest.mark.parametrize("element_bytes", [1, 2, 4])
def test_noise_is_stored_as_it_is(element_bytes: int) -> None:
    data, back = noise(4096), np.zeros(4096, np.uint8)
    pieces, payload = packed(data, element_bytes)
    assert {piece.compress for piece in pieces} == {Compress.NONE}
    assert payload.size == data.size
    Planes().unpack(payload, pieces, element_bytes, back)
    assert (back == data).all()


def test_the_object_works_again_after_a_plane_did_not_shrink() -> None:
    planes, out, back = Planes(), np.empty(8192, np.uint8), np.empty(8192, np.uint8)
    planes.pack(noise(8192), 1, out)
    pieces = planes.pack(kv(2), 2, out)
    planes.unpack(out[: sum(piece.length_bytes for piece in pieces)], pieces, 2, back)
    assert (back == kv(2)).all()


def test_damage_is_an_error_or_other_bytes_never_a_crash() -> None:
    pieces, payload = packed(kv(2), 2)
    for place in range(payload.size - pieces[1].length_bytes, payload.size):
        damaged = payload.copy()
        damaged[place] ^= 0x55
        with suppress(BlockDamaged):
            Planes().unpack(damaged, pieces, 2, np.empty(8192, np.uint8))


def frame(data: bytes) -> tuple[tuple[Piece, ...], Bytes]:
    raw = zstandard.ZstdCompressor().compress(data)
    return (Piece(Compress.ZSTD, len(raw)),), np.frombuffer(raw, np.uint8)


@pytest.mark.parametrize("length", [0, 4095, 4097, 100_000])
def test_a_frame_of_another_length_is_damage(length: int) -> None:
    pieces, payload = frame(bytes(length))
    with pytest.raises(BlockDamaged):
        Planes().unpack(payload, pieces, 1, np.empty(4096, np.uint8))


def test_lists_of_planes_that_cannot_be_are_damage() -> None:
    pieces, payload = packed(kv(2), 2)
    stored = Piece(Compress.NONE, payload.size)
    for wrong in ((), pieces[:1], (*pieces, stored), (stored, Piece(Compress.NONE, 0)), pieces[::-1]):
        with pytest.raises(BlockDamaged):
            Planes().unpack(payload, wrong, 2, np.empty(8192, np.uint8))


def test_a_cut_payload_is_damage() -> None:
    pieces, payload = packed(kv(2), 2)
    with pytest.raises(BlockDamaged):
        Planes().unpack(payload[:-1], pieces, 2, np.empty(8192, np.uint8))
