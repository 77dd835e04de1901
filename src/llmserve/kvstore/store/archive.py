"""A file of KV blocks, as `llmserve kv export` writes it.

    head     magic "LLMSKVX\\n", version (u32)
    block    "B", length of the record (u32), the record as JSON, xxh3 of all this (u64), the bytes of parts
    end      "E", in the same way; its record counts what came before, and nothing follows it

Numbers are little-endian. A record has the xxh3 of each part, so nothing in a file is taken unchecked; one
without its end is truncated. Blocks come after those before them in their prompt. Bytes are what DRAM has:
KV as engines have it, or its codes where engines quantize it (`quantize` of the record); neither compressed
nor encrypted.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import xxhash

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.formats import Quantize

VERSION = 1
_MAGIC = b"LLMSKVX\n"
_HEAD = struct.Struct("<8sI")
_RECORD = struct.Struct("<cI")
_DIGEST = struct.Struct("<Q")
_BLOCK, _END = b"B", b"E"
_MAX_RECORD_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_SIZE_LIMIT = 1 << 63


class WrongArchive(InvalidRequest):
    """The file is not an export, is of another version, is truncated or damaged. The message says where."""


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """One block. parts: length in bytes, xxh3, and shape as text (empty when unknown) of each part. quantize:
    the grid of its codes."""

    key: BlockHash
    parent: BlockHash | None
    tenant: TenantId
    parts: tuple[tuple[int, int, str], ...]
    quantize: Quantize = Quantize.NONE

    @property
    def size_bytes(self) -> int:
        return sum(length for length, *_ in self.parts)


@dataclass(frozen=True, slots=True)
class ArchiveContents:
    blocks: int
    size_bytes: int


class ArchiveWriter:
    """Call `begin` with each block's record, `write` with its bytes in pieces of any size; `finish` at the
    end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._blocks = self._size_bytes = self._missing_bytes = 0
        file.write(_HEAD.pack(_MAGIC, VERSION))

    @property
    def contents(self) -> ArchiveContents:
        return ArchiveContents(self._blocks, self._size_bytes)

    def begin(self, record: ArchiveRecord) -> None:
        assert not self._missing_bytes, "bytes of the last block are missing"
        self._missing_bytes = record.size_bytes
        self._blocks += 1
        self._size_bytes += record.size_bytes
        self._write(_BLOCK, _fields(record))

    def write(self, data: bytes) -> None:
        assert len(data) <= self._missing_bytes, "more bytes than the block has"
        self._missing_bytes -= len(data)
        self._file.write(data)

    def finish(self) -> None:
        assert not self._missing_bytes, "bytes of the last block are missing"
        self._write(_END, {"blocks": self._blocks, "bytes": self._size_bytes})

    def _write(self, kind: bytes, fields: dict[str, Any]) -> None:
        text = json.dumps(fields, separators=(",", ":")).encode()
        head = _RECORD.pack(kind, len(text)) + text
        self._file.write(head + _DIGEST.pack(xxhash.xxh3_64_intdigest(head)))


def check(file: BinaryIO) -> ArchiveContents:
    """Reads all of it. Errors: WrongArchive."""
    blocks = size = 0
    for item in read(file):
        blocks += isinstance(item, ArchiveRecord)
        size += len(item) if isinstance(item, bytes) else 0
    return ArchiveContents(blocks, size)


def read(file: BinaryIO) -> Iterator[ArchiveRecord | bytes]:
    """Yields for each block its record, then its bytes in pieces. The last piece of a part comes after its
    checksum was compared. Errors: WrongArchive."""
    file.seek(0)
    _check_head(file)
    blocks = size = 0
    while True:
        kind, fields = _read_record(file)
        if kind == _END:
            break
        record = _record(fields, file)
        blocks, size = blocks + 1, size + record.size_bytes
        yield record
        for part, (length, checksum, _) in enumerate(record.parts):
            yield from _read_part(file, record, part, length, checksum)
    if fields != {"blocks": blocks, "bytes": size} or file.read(1):
        raise WrongArchive(f"{_name(file)}: its end does not fit what is before it")


def _check_head(file: BinaryIO) -> None:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        raise WrongArchive(f"{_name(file)} is not an export of KV blocks")
    version = _HEAD.unpack(head)[1]
    if version != VERSION:
        raise WrongArchive(f"{_name(file)} has version {version} of the format; this release knows {VERSION}")


def _read_record(file: BinaryIO) -> tuple[bytes, dict[str, Any]]:
    at = file.tell()
    head = _read(file, _RECORD.size)
    kind, length = _RECORD.unpack(head)
    if kind not in (_BLOCK, _END) or length > _MAX_RECORD_BYTES:
        raise WrongArchive(f"{_name(file)}: no record of a block at byte {at}: the file is damaged")
    text = _read(file, length)
    (digest,) = _DIGEST.unpack(_read(file, _DIGEST.size))
    if xxhash.xxh3_64_intdigest(head + text) != digest:
        raise WrongArchive(f"{_name(file)}: the record at byte {at} is damaged")
    try:
        return kind, dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise WrongArchive(f"{_name(file)}: the record at byte {at} is no JSON object: {error}") from error


def _read_part(
    file: BinaryIO, record: ArchiveRecord, part: int, length: int, checksum: int
) -> Iterator[bytes]:
    digest = xxhash.xxh3_64()
    while length:
        piece = _read(file, min(length, _CHUNK_BYTES))
        digest.update(piece)
        length -= len(piece)
        if not length and digest.intdigest() != checksum:
            raise WrongArchive(f"{_name(file)}: block {record.key.hex()} is damaged (part {part})")
        yield piece


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise WrongArchive(f"{_name(file)} is truncated: it ends at byte {file.tell()}, within a block")
    return data


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", "the file"))


def _fields(record: ArchiveRecord) -> dict[str, Any]:
    return {
        "block": record.key.hex(),
        "parent": record.parent.hex() if record.parent else "",
        "tenant": record.tenant,
        "parts": record.parts,
        **({} if record.quantize is Quantize.NONE else {"quantize": record.quantize}),
    }


def _record(fields: dict[str, Any], file: BinaryIO) -> ArchiveRecord:
    try:
        parts = tuple((_size(size), int(checksum), str(shape)) for size, checksum, shape in fields["parts"])
        parent = BlockHash(bytes.fromhex(fields["parent"])) if fields["parent"] else None
        key, tenant = BlockHash(bytes.fromhex(fields["block"])), TenantId(str(fields["tenant"]))
        return ArchiveRecord(key, parent, tenant, parts, Quantize(fields.get("quantize", Quantize.NONE)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WrongArchive(f"{_name(file)}: a record that is not understood: {error!r}") from error


def _size(value: object) -> int:
    """Errors: ValueError."""
    if type(value) is not int or not 0 <= value < _SIZE_LIMIT:
        raise ValueError(f"a part has no {value!r} bytes")
    return value
