"""Reads records of one pack into memory: which ranges to request, and whether each record is intact."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from llmserve.buckets.failures import RequestFailed
from llmserve.core.aio import run_in_thread
from llmserve.kvstore.tiers.object.bucket import Bucket
from llmserve.kvstore.tiers.object.layout import PackEntry, record_checksum


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a pack that somebody wants. number: the caller's, of what it wants them for."""

    number: int
    offset: int
    length_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.length_bytes


@dataclass(slots=True)
class Range:
    """One request, and the extents that it brings, or brings a part of."""

    start: int
    end: int
    extents: list[Extent] = field(default_factory=list)


def plan_ranges(extents: Sequence[Extent], range_bytes: int, gap_bytes: int) -> list[Range]:
    """Neighbours go into one request, over gaps of up to gap_bytes, while it stays within range_bytes.
    An extent that is longer than that is cut into several requests."""
    ranges: list[Range] = []
    for extent in sorted(extents, key=lambda extent: extent.offset):
        if extent.length_bytes > range_bytes:
            ranges += _cut(extent, range_bytes)
            continue
        last = ranges[-1] if ranges else None
        if last and _joins(last, extent, range_bytes, gap_bytes):
            last.end = max(last.end, extent.end)
            last.extents.append(extent)
        else:
            ranges.append(Range(extent.offset, extent.end, [extent]))
    return ranges


def _joins(last: Range, extent: Extent, range_bytes: int, gap_bytes: int) -> bool:
    within = max(last.end, extent.end) - last.start <= range_bytes
    return within and extent.offset >= last.start and extent.offset - last.end <= gap_bytes


def _cut(extent: Extent, range_bytes: int) -> list[Range]:
    """Into equal parts."""
    parts = -(-extent.length_bytes // range_bytes)
    cuts = [extent.offset + extent.length_bytes * part // parts for part in range(parts + 1)]
    return [Range(start, end, [extent]) for start, end in pairwise(cuts)]


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """header and data: where they go, exactly as long as the entry says."""

    entry: PackEntry
    header: memoryview
    data: memoryview

    def is_whole(self) -> bool:
        return record_checksum(self.entry.key, self.header, self.data) == self.entry.checksum


@dataclass(frozen=True, slots=True)
class RecordDamage:
    """It came, but is not what was written."""


# None: it is there, and whole.
Fault = RequestFailed | RecordDamage | None


class RecordReader:
    def __init__(self, bucket: Bucket, threads: Executor, range_bytes: int, gap_bytes: int) -> None:
        self._bucket, self._threads = bucket, threads
        self._range_bytes, self._gap_bytes = range_bytes, gap_bytes

    async def read(self, path: str, records: Sequence[PackedRecord]) -> list[Fault]:
        """In their order. What is damaged is asked for once more: it may have been so on the way."""
        faults = await _Fetch(self._bucket, self._threads, path, records).run(self._plan(records))
        again = [number for number, fault in enumerate(faults) if isinstance(fault, RecordDamage)]
        if again:
            few = [records[number] for number in again]
            second = await _Fetch(self._bucket, self._threads, path, few).run(self._plan(few))
            for number, fault in zip(again, second, strict=True):
                faults[number] = fault
        return faults

    def _plan(self, records: Sequence[PackedRecord]) -> list[Range]:
        extents = [
            Extent(number, record.entry.offset, record.entry.length_bytes)
            for number, record in enumerate(records)
        ]
        wanted = [extent for extent in extents if extent.length_bytes]
        return plan_ranges(wanted, self._range_bytes, self._gap_bytes)


class _Fetch:
    """One call: its ranges run together, and each record is checked when the last of its ranges is there."""

    def __init__(self, bucket: Bucket, threads: Executor, path: str, records: Sequence[PackedRecord]) -> None:
        self._bucket, self._threads, self._path, self._records = bucket, threads, path, records
        self._faults: list[Fault] = [None] * len(records)
        self._missing: Counter[int] = Counter()  # ranges that a record waits for

    async def run(self, ranges: Sequence[Range]) -> list[Fault]:
        self._missing = Counter(extent.number for range_ in ranges for extent in range_.extents)
        async with asyncio.TaskGroup() as group:
            for range_ in ranges:
                group.create_task(self._range(range_), name="object.range")
        return self._faults

    async def _range(self, range_: Range) -> None:
        try:
            body = await self._bucket.get(self._path, range_.start, range_.end)
        except RequestFailed as failed:
            for extent in range_.extents:
                self._faults[extent.number] = failed
            return
        await run_in_thread(self._threads, lambda: self._scatter(range_, body))
        await self._check([extent.number for extent in range_.extents])

    def _scatter(self, range_: Range, body: memoryview) -> None:
        source = np.asarray(body)
        for extent in range_.extents:
            record, offset = self._records[extent.number], extent.offset
            _place(source, range_.start, record.header, offset)
            _place(source, range_.start, record.data, offset + len(record.header))

    async def _check(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._missing[number] -= 1
        ready = [number for number in numbers if not self._missing[number] and self._faults[number] is None]
        whole = await run_in_thread(
            self._threads, lambda: [self._records[number].is_whole() for number in ready]
        )
        for number, is_whole in zip(ready, whole, strict=True):
            self._faults[number] = None if is_whole else RecordDamage()


def _place(source: "np.ndarray[tuple[int], np.dtype[np.uint8]]", start: int, to: memoryview, at: int) -> None:
    """Copies what overlaps: source is at `start` of the pack, `to` begins at `at` of it."""
    begin, end = max(start, at), min(start + len(source), at + len(to))
    if begin < end:
        np.copyto(np.asarray(to[begin - at : end - at]), source[begin - start : end - start])
