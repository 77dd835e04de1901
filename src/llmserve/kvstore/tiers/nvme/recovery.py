"""What a segment file holds: told by its footer, or found by walking its pages. Blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from llmserve.kvstore.tiers.base import BlobKey
from llmserve.kvstore.tiers.nvme.arenas import Arena
from llmserve.kvstore.tiers.nvme.disk import SegmentFile
from llmserve.kvstore.tiers.nvme.layout import (
    MAGIC,
    MAGIC_AT,
    PAGE,
    Contents,
    Damaged,
    Entry,
    Head,
    Kind,
    check_of,
    pack_contents,
    padded,
    read_head,
    record_bytes,
    unpack_contents,
    unpack_graves,
    write_head,
)

_WINDOW_BYTES = 4 << 20
_FOOTER_GUESS_BYTES = 32 << 10  # the whole footer of most segments
_MAGIC_WORD = int.from_bytes(MAGIC, "little")


@dataclass(frozen=True, slots=True)
class Found:
    """end: of the records. has_footer: of the file as it is now."""

    contents: Contents
    end: int
    has_footer: bool


def find(file: SegmentFile, stamp: int) -> Found:
    """Errors: OSError."""
    try:
        return _from_footer(file, stamp)
    except Damaged:
        return _walk(file, stamp)


def seal(file: SegmentFile, stamp: int, contents: Contents, end: int) -> None:
    """Makes the records durable, then adds the footer, and gives back the rest of the file's room.
    Errors: OSError; the records are then as good as before."""
    file.sync()
    packed = pack_contents(contents)
    arena = Arena(padded(len(packed)) + PAGE)
    body, head = arena.take(len(packed)), arena.take(PAGE)
    body[: len(packed)] = packed
    write_head(head, Head(Kind.FOOTER, BlobKey(b""), b"", end, len(packed), check_of(packed)), stamp)
    file.write([body, head], end)
    file.cut(end + arena.size_bytes)


# -- by the footer


def _from_footer(file: SegmentFile, stamp: int) -> Found:
    """Errors: Damaged, OSError."""
    size = file.size_bytes
    if size < PAGE or size % PAGE:
        raise Damaged("it was not sealed")
    tail = _tail(file, min(size, _FOOTER_GUESS_BYTES))
    head = read_head(tail[-PAGE:], stamp)
    footer_bytes = padded(head.length) + PAGE
    if head.kind is not Kind.FOOTER or head.offset + footer_bytes != size:
        raise Damaged("its last page is no footer")
    if footer_bytes > len(tail):
        tail = _tail(file, footer_bytes)
    packed = bytes(tail[-footer_bytes:][: head.length])
    if check_of(packed) != head.check:
        raise Damaged("the checksum of its footer is wrong")
    return Found(unpack_contents(packed), head.offset, has_footer=True)


def _tail(file: SegmentFile, length: int) -> memoryview:
    """Errors: Damaged when the file is shorter."""
    page_up = Arena(length).take(length)
    if file.read([page_up], file.size_bytes - length) < length:
        raise Damaged("the file is shorter than it was")
    return page_up


# -- by its records


def _walk(file: SegmentFile, stamp: int) -> Found:
    """Every record that is whole, its data included. What is torn or was never written is stepped over."""
    contents, end, window = Contents(), 0, _Window(file)
    for head in _heads(window, stamp):
        if head.kind is Kind.GRAVES:
            contents.graves.extend(unpack_graves(memoryview(b"".join(_data(window, head)))))
        else:
            contents.entries.append(Entry(head.key, head.offset, head.length))
        end = head.offset + record_bytes(head.length)
    return Found(contents, end, has_footer=False)


def _heads(window: "_Window", stamp: int) -> Iterator[Head]:
    """Of the whole records, in their order."""
    at = window.likely_head(0)
    while at < window.file.size_bytes:
        try:
            head = _whole_record(window, at, stamp)
        except Damaged:
            at = window.likely_head(at + PAGE)
            continue
        yield head
        at = window.likely_head(at + record_bytes(head.length))


def _whole_record(window: "_Window", at: int, stamp: int) -> Head:
    """Errors: Damaged."""
    head = read_head(window.view(at, PAGE), stamp)
    if head.offset != at or head.kind is Kind.FOOTER:
        raise Damaged("no record begins here")
    state = xxhash.xxh3_64()
    for part in _data(window, head):
        state.update(part)
    if state.intdigest() != head.check:
        raise Damaged("it is torn")
    return head


def _data(window: "_Window", head: Head) -> Iterator[memoryview]:
    """The parts of a record's data, as far as the file goes; each is gone when the next one is asked for."""
    at, end = head.offset + PAGE, head.offset + PAGE + head.length
    while at < min(end, window.file.size_bytes):
        part = window.view(at, min(end - at, _WINDOW_BYTES))
        if not part:  # the file is shorter than it was
            return
        yield part
        at += len(part)


class _Window:
    """A stretch of a file in memory, moved forward as it is asked for more."""

    def __init__(self, file: SegmentFile) -> None:
        self.file = file
        self._memory = Arena(_WINDOW_BYTES).take(_WINDOW_BYTES)
        self._start = 0
        self._there = 0

    def view(self, at: int, at_most: int) -> memoryview:
        """From a page on; at least one byte, unless the file ends there. Errors: OSError."""
        if not self._start <= at < self._start + self._there:
            self._start, self._there = at, self.file.read([self._memory], at)
        first = at - self._start
        return self._memory[first : min(first + at_most, self._there)]

    def likely_head(self, at: int) -> int:
        """The next page from here that looks like a head; the file's size when there is none."""
        while at < self.file.size_bytes:
            pages = self.view(at, _WINDOW_BYTES)
            pages = pages[: len(pages) // PAGE * PAGE]
            if len(pages) == 0:
                break
            if pages[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC:
                return at
            words = np.frombuffer(pages, "<u4")[MAGIC_AT // 4 :: PAGE // 4]
            hits = np.flatnonzero(words == _MAGIC_WORD)
            if len(hits):
                return at + int(hits[0]) * PAGE
            at += len(pages)
        return self.file.size_bytes
