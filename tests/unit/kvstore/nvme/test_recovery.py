"""One file: written by BlobIO, found again, whatever is missing of it."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from llmserve.kvstore.tiers.base import BlobKey, TierOutcome
from llmserve.kvstore.tiers.nvme import recovery
from llmserve.kvstore.tiers.nvme.blob_io import BlobIO, Record, Wanted
from llmserve.kvstore.tiers.nvme.disk import LocalDisk, LocalFile
from llmserve.kvstore.tiers.nvme.layout import PAGE, Contents, Entry, Grave, Kind, pack_graves
from tests.conformance.segment_files import flip

STAMP = 0xFEED
SIZES = (1, PAGE, PAGE + 5, 0, 3 * PAGE - 1)
GRAVES = [Grave(7, 4096), Grave(STAMP, 0)]
IO = BlobIO(is_direct=False)


def records() -> list[Record]:
    blobs = [
        Record(Kind.BLOB, BlobKey(b"key %d" % n), b"header %d" % n, memoryview(bytes([n + 1]) * size))
        for n, size in enumerate(SIZES)
    ]
    return [*blobs, Record(Kind.GRAVES, BlobKey(b""), b"", memoryview(pack_graves(GRAVES)))]


def offsets() -> list[int]:
    """Of the records, and their end."""
    return [0, *itertools.accumulate(record.size_bytes for record in records())]


ENTRIES = [
    Entry(record.key, offset, len(record.data))
    for record, offset in zip(records()[:-1], offsets(), strict=False)
]
END = offsets()[-1]


@contextmanager
def opened(path: Path) -> Iterator[LocalFile]:
    file = LocalFile(path, 0)
    try:
        yield file
    finally:
        file.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    disk = LocalDisk(tmp_path)
    file = disk.create("segment", 64 * PAGE)
    disk.close()
    file.close()
    with opened(tmp_path / "segment") as file:
        IO.write(file, STAMP, 0, records())
    return tmp_path / "segment"


@pytest.fixture
def sealed(path: Path) -> Path:
    with opened(path) as file:
        recovery.seal(file, STAMP, Contents(ENTRIES, GRAVES), END)
    return path


def find(path: Path, stamp: int = STAMP) -> recovery.Found:
    with opened(path) as file:
        return recovery.find(file, stamp)


def test_a_sealed_segment_tells_by_its_footer(sealed: Path) -> None:
    assert find(sealed) == recovery.Found(Contents(ENTRIES, GRAVES), END, has_footer=True)
    assert sealed.stat().st_size == END + 2 * PAGE


def test_an_open_one_is_walked(path: Path) -> None:
    assert find(path) == recovery.Found(Contents(ENTRIES, GRAVES), END, has_footer=False)


def test_a_footer_longer_than_the_first_read(path: Path) -> None:
    many = Contents([Entry(BlobKey(b"%032d" % n), n, n) for n in range(2_000)], [])
    with opened(path) as file:
        recovery.seal(file, STAMP, many, END)
    assert find(path).contents == many


def test_a_segment_under_another_name_holds_nothing(sealed: Path) -> None:
    assert find(sealed, STAMP + 1).contents == Contents([], [])


@pytest.mark.parametrize("pages", range(END // PAGE + 2))
@pytest.mark.parametrize("more", [0, 1, PAGE - 1])
def test_a_torn_tail_costs_only_what_it_tears(sealed: Path, pages: int, more: int) -> None:
    size = pages * PAGE + more
    with sealed.open("r+b") as file:
        file.truncate(size)
    whole = [entry for entry in ENTRIES if entry.offset + PAGE + entry.length <= size]
    assert find(sealed).contents.entries == whole


@pytest.mark.parametrize("lost", range(len(SIZES)))
def test_a_record_never_written_hides_none_after_it(path: Path, lost: int) -> None:
    with path.open("r+b") as file:
        file.seek(offsets()[lost])
        file.write(bytes(records()[lost].size_bytes))
    assert find(path).contents.entries == [e for n, e in enumerate(ENTRIES) if n != lost]


def test_a_record_inside_the_data_of_another_is_not_found(tmp_path: Path, path: Path) -> None:
    """The image of a segment, stored as a blob: at another offset, and of another segment."""
    image = path.read_bytes()[:END]
    outer = tmp_path / "outer"
    outer.write_bytes(bytes(128 * PAGE))
    with opened(outer) as file:
        IO.write(file, STAMP, 0, [Record(Kind.BLOB, BlobKey(b"outer"), b"", memoryview(image))])
    flip(outer, 5)  # so that the walk steps through its data
    assert find(outer).contents == Contents([], [])


def test_records_longer_than_the_window(tmp_path: Path) -> None:
    path, size = tmp_path / "large", 9 << 20
    path.write_bytes(bytes(size * 2 + 4 * PAGE))
    large = [Record(Kind.BLOB, BlobKey(b"%d" % n), b"", memoryview(bytes([n]) * size)) for n in (1, 2)]
    with opened(path) as file:
        IO.write(file, STAMP, 0, large)
    assert [entry.key for entry in find(path).contents.entries] == [b"1", b"2"]
    flip(path, PAGE + size // 2)
    assert [entry.key for entry in find(path).contents.entries] == [b"2"]


def read_all(path: Path, entries: list[Entry]) -> Iterator[tuple[Entry, TierOutcome]]:
    """What is DONE is checked to be what was written."""
    written = {record.key: record for record in records()}
    with opened(path) as file:
        for entry in entries:
            buffer = memoryview(bytearray(entry.length))
            (result,) = IO.read(file, STAMP, [Wanted(entry.key, entry.offset, entry.length, buffer)])
            if result.outcome is TierOutcome.DONE:
                assert (result.header, buffer) == (written[entry.key].header, written[entry.key].data)
            yield entry, result.outcome


def touched(at: int) -> list[Entry]:
    return [e for e in ENTRIES if e.offset <= at < e.offset + PAGE + e.length]


many_examples = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many_examples
@given(at=st.integers(0, END + 2 * PAGE - 1), mask=st.integers(1, 255))
def test_any_byte_of_a_sealed_segment(sealed: Path, at: int, mask: int) -> None:
    """Head, header, data, padding, graves, footer, its padding and head: never other bytes, and no blob is
    lost but the one that was hit."""
    flip(sealed, at, mask)
    try:
        found = find(sealed)
        done = [
            entry
            for entry, outcome in read_all(sealed, found.contents.entries)
            if outcome is TierOutcome.DONE
        ]
        assert done == [entry for entry in ENTRIES if entry not in touched(at)]
    finally:
        flip(sealed, at, mask)


@many_examples
@given(at=st.integers(0, END - 1), mask=st.integers(1, 255))
def test_any_byte_of_an_open_segment(path: Path, at: int, mask: int) -> None:
    """What is walked is checked: what was hit is not even found."""
    flip(path, at, mask)
    try:
        assert find(path).contents.entries == [entry for entry in ENTRIES if entry not in touched(at)]
    finally:
        flip(path, at, mask)
