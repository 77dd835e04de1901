"""The bytes of a segment file. Pure.

    record   head page, data, zeros to the next page
    footer   contents, zeros to the next page, head page (the last page of a sealed file)

A head's checksum covers its whole page and starts from the segment's stamp; the data's is in the head.
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import xxhash

from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES, BlobKey

PAGE = ALIGNMENT_BYTES
MAGIC = b"LKV1"
MAGIC_AT = 8
MAX_KEY_BYTES = 64
MAX_HEADER_BYTES = 1024
_CHECK = struct.Struct("<Q")
_HEAD = struct.Struct("<4sBBHQQQ")  # magic, kind, key and header lengths, offset, data length and checksum
_HEAD_AT = _CHECK.size
_NAMES_AT = _HEAD_AT + _HEAD.size
_COUNTS = struct.Struct("<QQ")
_GRAVE = struct.Struct("<QQ")
_ENTRY = struct.Struct("<QQB")
_ENTRY_BYTES = _ENTRY.size + MAX_KEY_BYTES


class Kind(IntEnum):
    BLOB = 1
    GRAVES = 2
    FOOTER = 3


class Damaged(Exception):
    """Not what was written here; says what is wrong."""


@dataclass(frozen=True, slots=True)
class Head:
    """offset: where the record (of a footer: its contents) begins in the file. length, check: of the data."""

    kind: Kind
    key: BlobKey
    header: bytes
    offset: int
    length: int
    check: int


class Entry(NamedTuple):
    key: BlobKey
    offset: int
    length: int


class Grave(NamedTuple):
    """A record that is removed: its segment's stamp, and its offset there."""

    stamp: int
    offset: int


@dataclass(frozen=True, slots=True)
class Contents:
    """Of one segment: its blobs, and the graves that are written in it."""

    entries: list[Entry] = field(default_factory=list)
    graves: list[Grave] = field(default_factory=list)


class Demand(NamedTuple):
    """What a run of records takes: bytes in a row, and rows in the footer."""

    size_bytes: int
    entries: int = 0
    graves: int = 0

    def plus(self, other: "Demand") -> "Demand":
        return Demand(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def with_footer_bytes(self) -> int:
        """At most; as much as a file needs that holds these records."""
        rows = _ENTRY_BYTES * self.entries + _GRAVE.size * self.graves
        return self.size_bytes + PAGE + padded(_COUNTS.size + rows)


def padded(length: int) -> int:
    return -(-length // PAGE) * PAGE


def record_bytes(length: int) -> int:
    return PAGE + padded(length)


def check_of(data: bytes | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(data)


def write_head(page: memoryview, head: Head, stamp: int) -> None:
    """Fills the page. Key and header are within their limits."""
    sizes = len(head.key), len(head.header)
    fixed = _HEAD.pack(MAGIC, head.kind, *sizes, head.offset, head.length, head.check)
    page[_HEAD_AT:PAGE] = (fixed + head.key + head.header).ljust(PAGE - _HEAD_AT, b"\0")
    _CHECK.pack_into(page, 0, xxhash.xxh3_64_intdigest(page[_HEAD_AT:PAGE], stamp))


def read_head(page: memoryview, stamp: int) -> Head:
    """Errors: Damaged."""
    if len(page) < PAGE:
        raise Damaged("the file ends before it")
    (check,) = _CHECK.unpack_from(page)
    if check != xxhash.xxh3_64_intdigest(page[_HEAD_AT:PAGE], stamp):
        raise Damaged("the checksum of its head is wrong")
    magic, kind, key_bytes, header_bytes, offset, length, data_check = _HEAD.unpack_from(page, _HEAD_AT)
    if magic != MAGIC or not Kind.BLOB <= kind <= Kind.FOOTER:
        raise Damaged("it is not of this version")
    header_at = _NAMES_AT + key_bytes
    key = BlobKey(bytes(page[_NAMES_AT:header_at]))
    header = bytes(page[header_at : header_at + header_bytes])
    return Head(Kind(kind), key, header, offset, length, data_check)


def pack_graves(graves: list[Grave]) -> bytes:
    return b"".join(_GRAVE.pack(*grave) for grave in graves)


def unpack_graves(data: memoryview) -> list[Grave]:
    return [Grave(*row) for row in _GRAVE.iter_unpack(data)]


def pack_contents(contents: Contents) -> bytes:
    counts = _COUNTS.pack(len(contents.entries), len(contents.graves))
    rows = [_ENTRY.pack(offset, length, len(key)) + key for key, offset, length in contents.entries]
    return b"".join([counts, pack_graves(contents.graves), *rows])


def unpack_contents(data: bytes) -> Contents:
    """Of data whose checksum is right."""
    entry_count, grave_count = _COUNTS.unpack_from(data)
    at = _COUNTS.size + _GRAVE.size * grave_count
    graves = unpack_graves(memoryview(data)[_COUNTS.size : at])
    entries = []
    for _ in range(entry_count):
        offset, length, key_bytes = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size + key_bytes
        entries.append(Entry(BlobKey(data[at - key_bytes : at]), offset, length))
    return Contents(entries, graves)
