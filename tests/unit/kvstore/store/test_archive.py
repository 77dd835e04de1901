"""A file of blocks is read as it was written, or refused with the place where it is wrong."""

import io
import json
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
import xxhash

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.formats import Quantize
from llmserve.kvstore.store.archive import (
    ArchiveContents,
    ArchiveRecord,
    ArchiveWriter,
    WrongArchive,
    check,
    read,
)

PARTS = (b"first part", b"second")
A, B = BlockHash(b"a" * 32), BlockHash(b"b" * 32)


def _record(key: BlockHash, parent: BlockHash | None) -> ArchiveRecord:
    sums = tuple((len(part), xxhash.xxh3_64_intdigest(part), "") for part in PARTS)
    return ArchiveRecord(key, parent, TenantId("acme"), sums)


@pytest.fixture
def whole() -> bytes:
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    for key, parent in ((A, None), (B, A)):
        writer.begin(_record(key, parent))
        writer.write(PARTS[0][:3])
        writer.write(PARTS[0][3:] + PARTS[1])
    writer.finish()
    assert writer.contents == ArchiveContents(2, 32)
    return file.getvalue()


def test_what_was_written_is_read(whole: bytes) -> None:
    items = list(read(io.BytesIO(whole)))
    assert [item for item in items if isinstance(item, ArchiveRecord)] == [_record(A, None), _record(B, A)]
    assert b"".join(item for item in items if isinstance(item, bytes)) == b"".join(PARTS) * 2
    assert check(io.BytesIO(whole)) == ArchiveContents(2, 32)


def test_codes_are_told_from_numbers_and_older_files_have_neither_word() -> None:
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    records = [replace(_record(A, None), quantize=Quantize.INT8), _record(B, A)]
    for record in records:
        writer.begin(record)
        writer.write(b"".join(PARTS))
    writer.finish()
    assert file.getvalue().count(b"quantize") == 1
    assert [item for item in read(file) if isinstance(item, ArchiveRecord)] == records


def test_an_empty_export_is_one() -> None:
    file = io.BytesIO()
    ArchiveWriter(file).finish()
    assert check(file) == ArchiveContents(0, 0)


def test_no_beginning_of_a_file_is_taken_for_it(whole: bytes) -> None:
    for length in range(len(whole)):
        with pytest.raises(WrongArchive):
            check(io.BytesIO(whole[:length]))


def test_no_flipped_byte_goes_unseen(whole: bytes) -> None:
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        with pytest.raises(WrongArchive):
            check(io.BytesIO(damaged))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "is not an export"),
        (lambda data: b"PK\x03\x04" + data, "is not an export"),
        (lambda data: data[:8] + struct.pack("<I", 9) + data[12:], "version 9 of the format"),
        (lambda data: data[:-40], "truncated"),
        (lambda data: data + b"x", "its end does not fit"),
        (lambda data: data.replace(b"second", b"secant", 1), f"block {A.hex()} is damaged .part 1"),
    ],
)
def test_what_is_wrong_is_told(whole: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check(io.BytesIO(change(whole)))


_BLOCK = {"block": A.hex(), "parent": "", "tenant": "a"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"5", "no JSON object"),
        (b"[[1]]", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (json.dumps({**_BLOCK, "parts": [[-1, 0, ""]]}).encode(), "not understood"),
        (json.dumps({**_BLOCK, "parts": [[True, 0, ""]]}).encode(), "not understood"),
        (json.dumps({**_BLOCK, "parts": [[1 << 63, 0, ""]]}).encode(), "not understood"),
        (json.dumps({**_BLOCK, "parts": [[1, float("inf"), ""]]}).encode(), "not understood"),
        (json.dumps({**_BLOCK, "parts": [[1 << 62, 0, ""]]}).encode(), "truncated"),
    ],
)
def test_records_that_somebody_made_up(text: bytes, message: str) -> None:
    """Their checksums fit. A negative length was read without an end."""
    head = struct.pack("<cI", b"B", len(text)) + text
    record = head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head))
    with pytest.raises(WrongArchive, match=message):
        check(io.BytesIO(struct.pack("<8sI", b"LLMSKVX\n", 1) + record + b"xx"))
