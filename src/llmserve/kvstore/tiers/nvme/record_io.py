"""Reads and writes blobs in the data file: neighbours by one system call. Called on threads; blocks.

The stored bytes of a blob are its data, the caller's header, and zeros to the next page. Whole pages of data
go to and from the caller's memory without a copy when that memory begins at a page. Errors: OSError.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from llmserve.kvstore.tiers.base import Blob, ReadResult, TierOutcome
from llmserve.kvstore.tiers.nvme.disk import TierFile
from llmserve.kvstore.tiers.nvme.heads import PAGE, Place, check_of, padded, stored_pages

# A call of so many bytes is as fast as the medium; a longer one only makes the others wait.
CALL_BYTES = 4 << 20
CALL_BLOBS = 64
_LEAST_ARENA_BYTES = 1 << 20


class FileTooShort(OSError):
    """The file ends before what is to be read."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Memory of one blob. body: whole pages of the caller's memory. rest: pages of scratch memory for the
    other data and the header."""

    body: memoryview
    rest: memoryview


class RecordIO:
    def __init__(self, file: TierFile, *, is_direct: bool) -> None:
        self._file, self._is_direct = file, is_direct
        self._arenas = _Arenas()

    def write(self, blobs: Sequence[tuple[Place, Blob]]) -> list[Place]:
        """Returns the places with the checksums of what was written there."""
        datas = [blob.data.cast("B") for _, blob in blobs]
        places = [place for place, _ in blobs]
        with self._layouts(places, datas) as layouts:
            for at, data, (_, blob) in zip(layouts, datas, blobs, strict=True):
                tail = data[len(at.body) :]
                end = len(tail) + len(blob.header)
                at.rest[: len(tail)] = tail
                at.rest[len(tail) : end] = blob.header
                at.rest[end:] = bytes(len(at.rest) - end)
            for offset, buffers in _calls(places, layouts):
                self._file.write(buffers, offset)
        return [
            place._replace(check=check_of(data, blob.header))
            for (place, blob), data in zip(blobs, datas, strict=True)
        ]

    def read(self, wanted: Sequence[tuple[Place, memoryview]]) -> list[ReadResult]:
        """Fills the first bytes of each buffer, which is long enough; returns DONE or CORRUPT for each."""
        datas = [buffer.cast("B")[: place.length] for place, buffer in wanted]
        places = [place for place, _ in wanted]
        with self._layouts(places, datas) as layouts:
            for offset, buffers in _calls(places, layouts):
                if self._file.read(buffers, offset) < sum(map(len, buffers)):
                    raise FileTooShort("the file ends before it")
            return [_checked(*row) for row in zip(places, datas, layouts, strict=True)]

    @contextmanager
    def _layouts(self, places: Sequence[Place], datas: Sequence[memoryview]) -> Iterator[list[_Layout]]:
        bodies = [len(data) // PAGE * PAGE if self._in_place(data) else 0 for data in datas]
        rests = [
            stored_pages(place.length, place.header_bytes) * PAGE - body
            for place, body in zip(places, bodies, strict=True)
        ]
        with self._arenas.borrow(sum(rests)) as arena:
            layouts = []
            for data, body, rest in zip(datas, bodies, rests, strict=True):
                layouts.append(_Layout(data[:body], arena[:rest]))
                arena = arena[rest:]
            yield layouts

    def _in_place(self, data: memoryview) -> bool:
        return not self._is_direct or _is_aligned(data)


def _checked(place: Place, data: memoryview, at: _Layout) -> ReadResult:
    body = len(at.body)
    end = place.length - body
    data[body:] = at.rest[:end]
    header = bytes(at.rest[end : end + place.header_bytes])
    if check_of(data, header) != place.check:
        return ReadResult(TierOutcome.CORRUPT, "its checksum is wrong")
    return ReadResult(TierOutcome.DONE, header=header, length_bytes=place.length)


def _calls(places: Sequence[Place], layouts: Sequence[_Layout]) -> Iterator[tuple[int, list[memoryview]]]:
    """The offset and the buffers of each system call: one for what lies in a row."""
    start, end, buffers = 0, -1, list[memoryview]()
    for place, at in zip(places, layouts, strict=True):
        left = [part for part in (at.body, at.rest) if len(part)]
        for run in place.runs:
            parts, left = _split(left, run.pages * PAGE)
            if run.first * PAGE != end:
                if buffers:
                    yield start, buffers
                start, end, buffers = run.first * PAGE, run.first * PAGE, []
            buffers += parts
            end += sum(map(len, parts))
    if buffers:
        yield start, buffers


def _split(parts: Sequence[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first bytes, and the others."""
    first, others = [], []
    for part in parts:
        if size:
            first.append(part[:size])
        if len(part) > size:
            others.append(part[size:])
        size = max(0, size - len(part))
    return first, others


def neighbours(places: Sequence[Place]) -> list[list[int]]:
    """Groups of blobs that lie in a row, by their numbers, each for one call. A blob in pieces is alone."""
    groups: list[list[int]] = []
    end, size = -1, 0
    for number in sorted(range(len(places)), key=lambda number: places[number].runs[0].first):
        place = places[number]
        pages = stored_pages(place.length, place.header_bytes)
        size += pages * PAGE
        in_row = len(place.runs) == 1 and place.runs[0].first == end
        if in_row and size <= CALL_BYTES and len(groups[-1]) < CALL_BLOBS:
            groups[-1].append(number)
        else:
            groups.append([number])
            size = pages * PAGE
        end = place.runs[0].first + pages if len(place.runs) == 1 else -1
    return groups


def scratch(size_bytes: int) -> memoryview:
    """New memory that begins at a page."""
    return memoryview(mmap.mmap(-1, max(PAGE, padded(size_bytes))))


class _Arenas:
    """Scratch memory that begins at a page, kept for the next call. Used from several threads; holds as many
    arenas as work at once, each as large as its largest call."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    @contextmanager
    def borrow(self, size_bytes: int) -> Iterator[memoryview]:
        try:
            arena = self._free.pop()
        except IndexError:
            arena = scratch(_LEAST_ARENA_BYTES)
        if len(arena) < size_bytes:
            arena = scratch(size_bytes)
        try:
            yield arena
        finally:
            self._free.append(arena)


def _is_aligned(data: memoryview) -> bool:
    return len(data) == 0 or np.frombuffer(data, np.uint8).ctypes.data % PAGE == 0
