"""What is read from disks, buckets and archives. Each function imports its decoder when it is called: what is
fuzzed is instrumented then."""

import io
import struct
import tempfile
from pathlib import Path

import xxhash

from bench.fuzz.case import DEEP, FuzzCase, as_json


def block_header() -> FuzzCase:
    from llmserve.core.errors import BlockUnreadable
    from llmserve.kvstore.formats.header import Header

    def decode(data: bytes) -> None:
        head = struct.pack("<4sHH", b"LSKB", 1, len(data) & 0xFFFF) + data[:0xFFFF]
        Header.unpack(head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head)))

    valid = as_json(shape="a", quantize="int8", planes=[["zstd", 4]], key="k", nonce="00")
    return FuzzCase(decode, (BlockUnreadable,), (valid, DEEP))


def archive() -> FuzzCase:
    """The first byte is the size of a record's text, in eighths; what follows it is the next record."""
    from llmserve.kvstore.store.archive import WrongArchive, check

    def decode(data: bytes) -> None:
        size, text, rest = data[0] if data else 0, data[1:], b""
        text, rest = text[: size * 8], text[size * 8 :]
        head = struct.pack("<cI", b"B", len(text)) + text
        record = head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head))
        check(io.BytesIO(struct.pack("<8sI", b"LLMSKVX\n", 1) + record + rest))

    valid = as_json(key="00", parent=None, tenant="a", parts=[[1, 2, ""]])
    return FuzzCase(decode, (WrongArchive,), (b"\x20" + valid + b"E\x00\x00", b"\xff" + DEEP))


def pack_index() -> FuzzCase:
    """The first byte is the number of entries of an index; 255: what follows is the end of a pack."""
    from llmserve.kvstore.tiers.base import BlobKey
    from llmserve.kvstore.tiers.object.layout import (
        FOOTER_BYTES,
        Footer,
        PackDamaged,
        PackEntry,
        decode_footer,
        decode_index,
        encode_tail,
    )

    def decode(data: bytes) -> None:
        count, rest = data[0] if data else 0, data[1:]
        if count == 255:
            footer = decode_footer(memoryview(rest), len(rest))
            decode_index(memoryview(rest)[-FOOTER_BYTES - footer.index_bytes : -FOOTER_BYTES], footer)
        else:
            checksum = xxhash.xxh3_64_intdigest(rest)
            decode_index(memoryview(rest), Footer(len(rest), len(rest), count, checksum, b""))

    entries = [PackEntry(BlobKey(b"k" * size), size, 16, 64, 7) for size in (16, 32)]
    tail = encode_tail(entries, 0)
    seeds = (b"\x02" + tail[:-FOOTER_BYTES], b"\xff" + tail, b"\xff" + encode_tail([], 0), b"\x00")
    return FuzzCase(decode, (PackDamaged,), seeds)


def removals() -> FuzzCase:
    from llmserve.kvstore.tiers.object.layout import PackDamaged
    from llmserve.kvstore.tiers.object.removals import decode_removals

    def decode(data: bytes) -> None:
        decode_removals(xxhash.xxh3_64_hexdigest(data).encode() + b"\n" + data)

    return FuzzCase(decode, (PackDamaged,), (as_json(version=1, packs={"a/1.pack": [1, 2]}), DEEP))


def safetensors() -> FuzzCase:
    """The header of a file of weights."""
    from llmserve.core.errors import InvalidRequest
    from llmserve.models.adapters.tensors import check_extent, read_header

    path = Path(tempfile.mkdtemp()) / "a.safetensors"  # within the folder that fuzz.py removes

    def decode(data: bytes) -> None:
        path.write_bytes(len(data).to_bytes(8, "little") + data)
        check_extent(path, read_header(path))

    valid = as_json(a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, __metadata__={})
    return FuzzCase(decode, (InvalidRequest,), (valid, DEEP))
