"""Blocks to what a tier stores, and back: quantize, compress, encrypt, as the format says."""

from dataclasses import dataclass

import numpy as np

from llmserve.core.errors import BlockDamaged, KeyUnknown, StartFailed
from llmserve.kvstore.formats.compress import Planes
from llmserve.kvstore.formats.elements import ByteArray
from llmserve.kvstore.formats.encrypt import TAG_BYTES, KeyRing, context_of, new_seal, open_into, seal_into
from llmserve.kvstore.formats.header import (
    MAX_HEADER_BYTES,
    BlockFormat,
    Compress,
    Header,
    Piece,
    Quantize,
    Seal,
)
from llmserve.kvstore.formats.quantize import Quantizer, quantized_bytes
from llmserve.kvstore.formats.shape import BlockShape

_LONGEST_TAIL_BYTES = 400  # of a header: everything but the shape
_KEPT_QUANTIZERS = 4


@dataclass(frozen=True, slots=True)
class Encoded:
    """payload: a part of what the caller gave: of `out`, or the block itself where nothing is done to it."""

    header: bytes
    payload: memoryview


class BlockCodec:
    """Encodes blocks of one shape in one format, and decodes blocks of that size in any format. Owns scratch
    memory: for one thread at a time, so make one for each.

    Errors: StartFailed for a format that cannot be (no key, no numbers, a shape too long for a header)."""

    def __init__(self, shape: BlockShape, form: BlockFormat, keys: KeyRing | None = None) -> None:
        if form.encrypt and keys is None:
            raise StartFailed("encryption at rest needs a key")
        if len(shape.text()) > MAX_HEADER_BYTES - _LONGEST_TAIL_BYTES:
            raise StartFailed("the shape of a block is too long for a header: use packings.grouped")
        self._shape = shape
        self._form = form
        self._keys = keys
        self._planes = Planes()
        self._scratch: dict[str, ByteArray] = {}
        self._quantizers: dict[tuple[str, Quantize], Quantizer] = {}
        if form.quantize is not Quantize.NONE:
            self._quantizer(shape, form.quantize)

    @property
    def bound_bytes(self) -> int:
        """Length of the longest payload; most are shorter."""
        return max(self._shape.size_bytes, quantized_bytes(self._shape)) + TAG_BYTES

    def encode(self, block_key: bytes, block: memoryview, out: memoryview) -> Encoded:
        """block: contiguous, of the shape's size. out: at least bound_bytes, apart from the block. A block
        that cannot be quantized (`Quantizer.quantize`) is stored without; its header says so."""
        data, room = _bytes(block), _bytes(out)
        assert data.size == self._shape.size_bytes, "a block of another shape"
        grid, data = self._quantize(data, room)
        pieces, data = self._compress(data, grid, room)
        seal = new_seal(self._keys) if self._form.encrypt and self._keys else None
        header = Header(self._shape.text(), grid, pieces, seal).pack()
        return Encoded(header, self._encrypt(seal, context_of(block_key, header), data, room).data)

    def decode(self, block_key: bytes, header: bytes, payload: memoryview, out: memoryview) -> None:
        """out: of the shape's size; garbage after an error. payload lies apart from it, or is it, of
        what is stored raw (`Header.is_raw`): that is not copied then.
        Errors: BlockUnreadable in all its kinds."""
        stored, block = Header.unpack(header), _bytes(out)
        assert block.size == self._shape.size_bytes, "room for a block of another shape"
        shape = self._stored_shape(stored)
        plain = self._decrypt(stored, context_of(block_key, header), _bytes(payload), block)
        codes = self._decompress(stored, shape, plain, block)
        self._dequantize(stored, shape, codes, block)

    # -- encode

    def _quantize(self, data: ByteArray, room: ByteArray) -> tuple[Quantize, ByteArray]:
        grid = self._form.quantize
        if grid is Quantize.NONE:
            return grid, data
        is_last = self._form.compress is Compress.NONE and not self._form.encrypt
        codes = self._room(is_last, room, "quantized", quantized_bytes(self._shape))
        if self._quantizer(self._shape, grid).quantize(data, codes):
            return grid, codes
        return Quantize.NONE, data

    def _compress(
        self, data: ByteArray, grid: Quantize, room: ByteArray
    ) -> tuple[tuple[Piece, ...], ByteArray]:
        if self._form.compress is Compress.NONE:
            return (), data
        out = self._room(not self._form.encrypt, room, "compressed", data.size)
        pieces = self._planes.pack(data, _element_bytes(self._shape, grid), out)
        return pieces, out[: sum(piece.length_bytes for piece in pieces)]

    def _encrypt(self, seal: Seal | None, context: bytes, data: ByteArray, room: ByteArray) -> ByteArray:
        if seal is None or self._keys is None:
            return data
        out = room[: data.size + TAG_BYTES]
        seal_into(self._keys, seal, context, data, out)
        return out

    # -- decode

    def _stored_shape(self, stored: Header) -> BlockShape:
        if stored.shape == self._shape.text():
            return self._shape
        shape = BlockShape.parse(stored.shape)
        if shape.size_bytes != self._shape.size_bytes:
            raise BlockDamaged(f"a block of {shape.size_bytes} bytes, not {self._shape.size_bytes}")
        return shape

    def _decrypt(self, stored: Header, context: bytes, payload: ByteArray, block: ByteArray) -> ByteArray:
        if stored.seal is None:
            return payload
        if self._keys is None:
            raise KeyUnknown(f"encrypted under the key {stored.seal.key_id!r}, and none is configured")
        length = payload.size - TAG_BYTES
        is_last = not stored.planes and stored.quantize is Quantize.NONE
        if not 0 <= length <= self.bound_bytes or (is_last and length != block.size):
            raise BlockDamaged(f"an encrypted payload of {payload.size} bytes")
        plain = self._room(is_last, block, "decrypted", length)
        open_into(self._keys, stored.seal, context, payload, plain)
        return plain

    def _decompress(self, stored: Header, shape: BlockShape, data: ByteArray, block: ByteArray) -> ByteArray:
        if not stored.planes:
            return data
        is_last = stored.quantize is Quantize.NONE
        out = self._room(is_last, block, "decompressed", _coded_bytes(shape, stored.quantize))
        self._planes.unpack(data, stored.planes, _element_bytes(shape, stored.quantize), out)
        return out

    def _dequantize(self, stored: Header, shape: BlockShape, data: ByteArray, block: ByteArray) -> None:
        if data.size != _coded_bytes(shape, stored.quantize):
            raise BlockDamaged(f"a payload of {data.size} bytes for a block of {block.size}")
        if stored.quantize is not Quantize.NONE:
            self._quantizer(shape, stored.quantize).dequantize(data, block)
        elif data.ctypes.data != block.ctypes.data:
            np.copyto(block, data)

    # -- memory

    def _room(self, is_last: bool, final: ByteArray, stage: str, size: int) -> ByteArray:
        """For what a stage makes: the caller's memory for the last one, scratch before."""
        if is_last:
            return final[:size]
        held = self._scratch.get(stage)
        if held is None or held.size < size:
            held = self._scratch[stage] = np.empty(size, np.uint8)
        return held[:size]

    def _quantizer(self, shape: BlockShape, grid: Quantize) -> Quantizer:
        name = (shape.text(), grid)
        if name not in self._quantizers:
            if len(self._quantizers) >= _KEPT_QUANTIZERS:
                self._quantizers.clear()
            self._quantizers[name] = Quantizer(shape, grid)
        return self._quantizers[name]


def _bytes(buffer: memoryview) -> ByteArray:
    return np.frombuffer(buffer, np.uint8)


def _element_bytes(shape: BlockShape, grid: Quantize) -> int:
    return shape.element.size_bytes if grid is Quantize.NONE else 1


def _coded_bytes(shape: BlockShape, grid: Quantize) -> int:
    return shape.size_bytes if grid is Quantize.NONE else quantized_bytes(shape)
