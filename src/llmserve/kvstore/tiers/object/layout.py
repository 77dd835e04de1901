"""A pack, byte by byte. Pure.

    record 0: header, data | record 1 | … | index: an entry for each record | footer

Integers are little-endian. An entry: offset of the record (u64), bytes of data (u64), checksum (u64), bytes
of the header (u16), bytes of the key (u8), the key. The checksum is xxh3-64 of key, header and data, so a
record that is read under another key's entry is found out, too. The footer: magic with the version, bytes
of the whole pack (u64), bytes of the index (u32), entries (u32), xxh3-64 of the index and of the footer up
to here (u64).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from llmserve.kvstore.tiers.base import BlobKey

MAGIC = b"LSPACK01"
_ENTRY = struct.Struct("<QQQHB")
_FOOTER = struct.Struct("<8sQII")
_SUM = struct.Struct("<Q")
FOOTER_BYTES = _FOOTER.size + _SUM.size
LONGEST_KEY_BYTES = 64
LONGEST_HEADER_BYTES = 1024
LONGEST_ENTRY_BYTES = _ENTRY.size + LONGEST_KEY_BYTES


class PackDamaged(Exception):
    """This is not the end of a pack, or no longer. Caught by who reads packs."""


@dataclass(frozen=True, slots=True)
class PackEntry:
    key: BlobKey
    offset: int
    header_bytes: int
    data_bytes: int
    checksum: int

    @property
    def length_bytes(self) -> int:
        return self.header_bytes + self.data_bytes


@dataclass(frozen=True, slots=True)
class Footer:
    pack_bytes: int
    index_bytes: int
    entries: int
    checksum: int
    packed: bytes  # what the checksum is of, after the index


def entry_bytes(key: bytes) -> int:
    return _ENTRY.size + len(key)


def record_checksum(key: bytes, header: bytes | memoryview, data: memoryview) -> int:
    state = xxhash.xxh3_64(key)
    state.update(header)
    state.update(data)
    return state.intdigest()


def encode_tail(entries: Sequence[PackEntry], records_bytes: int) -> bytes:
    """Index and footer of a pack whose records take so many bytes."""
    index = b"".join(
        _ENTRY.pack(entry.offset, entry.data_bytes, entry.checksum, entry.header_bytes, len(entry.key))
        + entry.key
        for entry in entries
    )
    total = records_bytes + len(index) + FOOTER_BYTES
    footer = _FOOTER.pack(MAGIC, total, len(index), len(entries))
    return index + footer + _SUM.pack(xxhash.xxh3_64_intdigest(index + footer))


def decode_footer(tail: memoryview, pack_bytes: int) -> Footer:
    """tail: the last bytes of a pack of pack_bytes. Errors: PackDamaged."""
    if len(tail) < FOOTER_BYTES:
        raise PackDamaged("shorter than a footer")
    packed = bytes(tail[-FOOTER_BYTES : -_SUM.size])
    magic, total, index_bytes, entries = _FOOTER.unpack(packed)
    if magic != MAGIC:
        raise PackDamaged("no footer of this version")
    if total != pack_bytes or index_bytes > pack_bytes - FOOTER_BYTES:
        raise PackDamaged(f"{pack_bytes} bytes, where the footer says {total}")
    (checksum,) = _SUM.unpack(tail[-_SUM.size :])
    return Footer(total, index_bytes, entries, checksum, packed)


def decode_index(index: memoryview, footer: Footer) -> list[PackEntry]:
    """index: exactly the bytes of the index. Errors: PackDamaged."""
    if xxhash.xxh3_64_intdigest(bytes(index) + footer.packed) != footer.checksum:
        raise PackDamaged("the index has another checksum")
    entries, at = [], 0
    while at < len(index):
        if len(index) - at < _ENTRY.size:
            raise PackDamaged(f"{len(index) - at} bytes at the end of the index, where an entry begins")
        offset, data_bytes, checksum, header_bytes, key_bytes = _ENTRY.unpack_from(index, at)
        at += _ENTRY.size
        entries.append(
            PackEntry(BlobKey(bytes(index[at : at + key_bytes])), offset, header_bytes, data_bytes, checksum)
        )
        at += key_bytes
    if at != len(index):
        raise PackDamaged("the last key of the index is cut off")
    if len(entries) != footer.entries:
        raise PackDamaged(f"{len(entries)} entries, where the footer says {footer.entries}")
    return entries


_PACK = ".pack"


def pack_path(owner: str, time_ns: int, nonce: str) -> str:
    """In the order of time, for whoever looks; nonce: so that no two processes ever write the same one."""
    return f"{owner}/{time_ns:016x}-{nonce}{_PACK}"


def is_pack(path: str) -> bool:
    return path.count("/") == 1 and path.endswith(_PACK)


def removals_path(owner: str) -> str:
    return f"{owner}/removed.json"


def is_of(owner: str, path: str) -> bool:
    return path.startswith(f"{owner}/")


def owner_of(path: str) -> str:
    return path.partition("/")[0]
