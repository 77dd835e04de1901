"""zstd over planes of bytes: the first bytes of all numbers, then the second ones, and so on.

In a number of two bytes the high one (sign and exponent) shrinks to a third in KV caches, and the low one
(mantissa) is noise: it is stored, and no time is spent on trying. Measured on KV of SmolLM2-135M, 2.8 MiB:
planes save 33% at 0.9 GB/s, zstd over the bytes as they lie 21% at 0.5 GB/s. Codes of quantized numbers are
one plane. A plane that zstd does not make at least 2% smaller is stored.
"""

from collections.abc import Sequence

import numpy as np
import zstandard

from llmserve.core.errors import BlockDamaged
from llmserve.kvstore.formats.elements import Array, ByteArray
from llmserve.kvstore.formats.header import Compress, Piece

_WORTH = 0.98
# Almost all of the gain is in the frequencies of bytes. A tiny table of long matches keeps zstd from looking
# for repetitions that are not there: 3 times the speed of level 1, at a slightly better ratio.
_PARAMETERS = {"strategy": zstandard.STRATEGY_FAST, "min_match": 7, "hash_log": 6, "window_log": 17}


class Planes:
    """Owns compression state: for one thread at a time. It lets go of the GIL while it works."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters(compression_level=1, **_PARAMETERS)
        self._compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self._decompressor = zstandard.ZstdDecompressor()

    def pack(self, data: ByteArray, element_bytes: int, out: ByteArray) -> tuple[Piece, ...]:
        """The pieces, one after the other at the beginning of out, which has room for all of data."""
        pieces: list[Piece] = []
        for plane, worth_trying in _planes(data, element_bytes):
            pieces.append(self._pack(plane, worth_trying, out[_length(pieces) :]))
        return tuple(pieces)

    def unpack(self, payload: ByteArray, pieces: Sequence[Piece], element_bytes: int, out: ByteArray) -> None:
        """Errors: BlockDamaged."""
        if len(pieces) != element_bytes or _length(pieces) != len(payload):
            raise BlockDamaged(f"{len(payload)} bytes are not the {len(pieces)} planes that the header lists")
        planes: list[ByteArray] = []
        for piece in pieces:
            planes.append(self._unpack(piece, payload[: piece.length_bytes], out, element_bytes))
            payload = payload[piece.length_bytes :]
        _join(planes, out)

    def _pack(self, plane: Array, worth_trying: bool, out: ByteArray) -> Piece:
        if worth_trying:
            whole = np.ascontiguousarray(plane)
            room = int(_WORTH * whole.size)
            length = self._compressor.stream_reader(whole.data, size=whole.size).readinto(out[:room].data)
            if length < room:
                return Piece(Compress.ZSTD, length)
        np.copyto(out[: plane.size], plane)
        return Piece(Compress.NONE, plane.size)

    def _unpack(self, piece: Piece, stored: ByteArray, out: ByteArray, element_bytes: int) -> ByteArray:
        size = out.size // element_bytes
        if piece.compress is Compress.NONE:
            if stored.size != size:
                raise BlockDamaged(f"a plane of {stored.size} bytes, not {size}")
            return stored
        plane = out if element_bytes == 1 else np.empty(size, np.uint8)
        self._decompress(stored, plane)
        return plane

    def _decompress(self, frame: ByteArray, plane: ByteArray) -> None:
        reader = self._decompressor.stream_reader(frame.data)
        try:
            length, more = reader.readinto(plane.data), reader.read(1)
        except zstandard.ZstdError as error:
            raise BlockDamaged(f"zstd: {error}") from error
        if length != plane.size or more:
            raise BlockDamaged(f"a zstd frame does not hold the {plane.size} bytes of its plane")


def _length(pieces: Sequence[Piece]) -> int:
    return sum(piece.length_bytes for piece in pieces)


def _planes(data: ByteArray, element_bytes: int) -> list[tuple[Array, bool]]:
    """From the lowest; whether it can be expected to shrink."""
    if element_bytes == 2:  # three times the speed of taking every second byte
        words = data.view("<u2")
        return [(words.astype(np.uint8), False), ((words >> 8).astype(np.uint8), True)]
    return [(data[low::element_bytes], 2 * low + 2 > element_bytes) for low in range(element_bytes)]


def _join(planes: Sequence[ByteArray], out: ByteArray) -> None:
    if len(planes) == 2:
        words = out.view("<u2")
        np.copyto(words, planes[1])
        np.left_shift(words, 8, out=words)
        np.bitwise_or(words, planes[0], out=words)
    elif planes[0] is not out:
        for low, plane in enumerate(planes):
            np.copyto(out[low :: len(planes)], plane)
