"""Runs of neighbouring records, written or read by one system call. Called on threads; blocks.

What begins at a page goes to and from the caller's memory without a copy, but for a last part of a page.
Errors: OSError, of a run as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from llmserve.kvstore.tiers.base import BlobKey, ReadResult, TierOutcome
from llmserve.kvstore.tiers.nvme.arenas import Arena, Arenas, is_aligned
from llmserve.kvstore.tiers.nvme.disk import SegmentFile
from llmserve.kvstore.tiers.nvme.layout import (
    PAGE,
    Damaged,
    Head,
    Kind,
    check_of,
    padded,
    read_head,
    record_bytes,
    write_head,
)

# One call of so much is as fast as the medium; more would only make the others wait.
RUN_BYTES = 4 << 20
RUN_RECORDS = 64


@dataclass(frozen=True, slots=True)
class Record:
    """To write. data: contiguous bytes."""

    kind: Kind
    key: BlobKey
    header: bytes
    data: memoryview

    @property
    def size_bytes(self) -> int:
        return record_bytes(len(self.data))


@dataclass(frozen=True, slots=True)
class Wanted:
    """To read: the blob of this key and length at this offset, into a buffer with room for it."""

    key: BlobKey
    offset: int
    length: int
    buffer: memoryview

    @property
    def end(self) -> int:
        return self.offset + record_bytes(self.length)


@dataclass(frozen=True, slots=True)
class _Landing:
    """Where the parts of a record land: body in the caller's buffer or, when that is not aligned, beside
    `rest` in the arena."""

    head: memoryview
    body: memoryview
    rest: memoryview
    in_place: bool


class BlobIO:
    def __init__(self, *, is_direct: bool) -> None:
        self._is_direct = is_direct
        self._arenas = Arenas()

    def write(self, file: SegmentFile, stamp: int, offset: int, records: Sequence[Record]) -> None:
        with self._arenas.borrow(sum(PAGE + self._scratch_bytes(r.data) for r in records)) as arena:
            vectors = []
            for record in records:
                vectors += self._vectors(arena, stamp, offset, record)
                offset += record.size_bytes
            file.write(vectors, offset - sum(record.size_bytes for record in records))

    def read(self, file: SegmentFile, stamp: int, run: Sequence[Wanted]) -> list[ReadResult]:
        """DONE or CORRUPT each. run: each begins where the one before ends."""
        with self._arenas.borrow(sum(PAGE + self._scratch_bytes(_whole(w)) for w in run)) as arena:
            landings = [self._landing(arena, wanted) for wanted in run]
            vectors = [part for at in landings for part in (at.head, at.body, at.rest) if len(part)]
            done = file.read(vectors, run[0].offset)
            ends = accumulate(record_bytes(wanted.length) for wanted in run)
            rows = zip(run, landings, ends, strict=True)
            return [_checked(stamp, wanted, at, is_there=end <= done) for wanted, at, end in rows]

    def _scratch_bytes(self, data: memoryview) -> int:
        return PAGE if self._in_place(data) else padded(len(data))

    def _in_place(self, data: memoryview) -> bool:
        return not self._is_direct or is_aligned(data)

    def _vectors(self, arena: Arena, stamp: int, offset: int, record: Record) -> list[memoryview]:
        head, data = arena.take(PAGE), record.data
        fields = Head(record.kind, record.key, record.header, offset, len(data), check_of(data))
        write_head(head, fields, stamp)
        whole = len(data) // PAGE * PAGE if self._in_place(data) else 0
        if whole == len(data):
            return [head, data] if whole else [head]
        rest = arena.take(len(data) - whole)
        rest[: len(data) - whole] = data[whole:]
        rest[len(data) - whole :] = bytes(len(rest) - (len(data) - whole))
        return [head, data[:whole], rest] if whole else [head, rest]

    def _landing(self, arena: Arena, wanted: Wanted) -> _Landing:
        buffer = _whole(wanted)
        in_place = self._in_place(buffer)
        whole = len(buffer) // PAGE * PAGE if in_place else 0
        rest = arena.take(len(buffer) - whole)
        return _Landing(arena.take(PAGE), buffer[:whole], rest, in_place)


def _whole(wanted: Wanted) -> memoryview:
    return wanted.buffer[: wanted.length]


def _checked(stamp: int, wanted: Wanted, at: _Landing, *, is_there: bool) -> ReadResult:
    """The outcome, and the buffer filled when it is DONE."""
    if not is_there:
        return ReadResult(TierOutcome.CORRUPT, "the file ends before it")
    whole = len(at.body)
    wanted.buffer[whole : wanted.length] = at.rest[: wanted.length - whole]
    try:
        head = read_head(at.head, stamp)
    except Damaged as error:
        return ReadResult(TierOutcome.CORRUPT, str(error))
    if (head.kind, head.key, head.offset, head.length) != (
        Kind.BLOB,
        wanted.key,
        wanted.offset,
        wanted.length,
    ):
        return ReadResult(TierOutcome.CORRUPT, "another record lies in its place")
    if check_of(wanted.buffer[: wanted.length]) != head.check:
        return ReadResult(TierOutcome.CORRUPT, "the checksum of its data is wrong")
    return ReadResult(TierOutcome.DONE, header=head.header, length_bytes=wanted.length)


def cut_into_runs(sizes: Sequence[int], run_bytes: int) -> list[slice]:
    """Of neighbours: as many together as run_bytes and RUN_RECORDS allow, at least one."""
    runs, first, total = [], 0, 0
    for number, size in enumerate(sizes):
        if number > first and (total + size > run_bytes or number - first == RUN_RECORDS):
            runs.append(slice(first, number))
            first, total = number, 0
        total += size
    return [*runs, slice(first, len(sizes))] if sizes else []


def neighbours(wanted: Sequence[Wanted], run_bytes: int) -> list[list[Wanted]]:
    """Runs of those that lie one after the other. wanted: of one segment, by offset."""
    rows: list[list[Wanted]] = []
    for one in wanted:
        if rows and rows[-1][-1].end == one.offset:
            rows[-1].append(one)
        else:
            rows.append([one])
    return [row[cut] for row in rows for cut in cut_into_runs([o.end - o.offset for o in row], run_bytes)]
