"""What is stored with a payload, so that it can be decoded when the manifest has long changed.

Magic, version (u16), length of the body (u16), the body as JSON, xxh3 of all before it (u64); little-endian.
A release reads every version that an earlier one wrote; tests/unit/kvstore/formats keeps a sample of each.
"""

import json
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import xxhash

from llmserve.core.errors import BlockDamaged, FormatUnknown


class Quantize(StrEnum):
    NONE = "none"
    INT8 = "int8"
    FP8 = "fp8"  # e4m3: 4 bits of exponent, 3 of mantissa


class Compress(StrEnum):
    NONE = "none"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """encrypt: AES-256-GCM under the newest key."""

    quantize: Quantize = Quantize.NONE
    compress: Compress = Compress.NONE
    encrypt: bool = False


MAX_HEADER_BYTES = 1024
VERSION = 1
_MAGIC = b"LSKB"
_HEAD = struct.Struct("<4sHH")
_DIGEST = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Piece:
    """So many bytes of a payload. ZSTD: one frame."""

    compress: Compress
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Seal:
    """AES-256-GCM; the payload ends in its tag."""

    key_id: str
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """shape: BlockShape.text(). planes: the pieces of what quantization left (`compress`); none: it is stored
    as it is. seal: None when not encrypted."""

    shape: str
    quantize: Quantize
    planes: tuple[Piece, ...]
    seal: Seal | None

    @property
    def is_raw(self) -> bool:
        """The payload is the block itself."""
        return not self.planes and self.seal is None and self.quantize is Quantize.NONE

    def pack(self) -> bytes:
        body = json.dumps(self._fields(), separators=(",", ":")).encode()
        head = _HEAD.pack(_MAGIC, VERSION, len(body)) + body
        return head + _DIGEST.pack(xxhash.xxh3_64_intdigest(head))

    def _fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"shape": self.shape, "quantize": self.quantize}
        if self.planes:
            fields["planes"] = [[piece.compress, piece.length_bytes] for piece in self.planes]
        if self.seal:
            fields["key"], fields["nonce"] = self.seal.key_id, self.seal.nonce.hex()
        return fields

    @classmethod
    def unpack(cls, raw: bytes) -> "Header":
        """Errors: BlockDamaged, FormatUnknown."""
        body = _checked(raw)
        try:
            fields = json.loads(body)
            return cls(str(fields["shape"]), Quantize(fields["quantize"]), _planes(fields), _seal(fields))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatUnknown(f"header not understood: {error!r}") from error


def _checked(raw: bytes) -> bytes:
    """The body."""
    if len(raw) < _HEAD.size + _DIGEST.size or raw[:4] != _MAGIC:
        raise BlockDamaged("no header of a block")
    head, (digest,) = raw[: -_DIGEST.size], _DIGEST.unpack(raw[-_DIGEST.size :])
    _, version, length = _HEAD.unpack_from(head)
    if xxhash.xxh3_64_intdigest(head) != digest or length != len(head) - _HEAD.size:
        raise BlockDamaged("the header is not what was written")
    if version != VERSION:
        raise FormatUnknown(f"version {version} of the header; this release knows {VERSION}")
    return head[_HEAD.size :]


def _planes(fields: dict[str, Any]) -> tuple[Piece, ...]:
    return tuple(Piece(Compress(name), _length(size)) for name, size in fields.get("planes", ()))


def _length(size: object) -> int:
    if not isinstance(size, int) or size < 0:
        raise ValueError("a length is a number of bytes")
    return size


def _seal(fields: dict[str, Any]) -> Seal | None:
    return Seal(str(fields["key"]), bytes.fromhex(fields["nonce"])) if "key" in fields else None
