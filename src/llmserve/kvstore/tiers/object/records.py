"""Reads records of one pack into memory, and says of each whether it is what was written."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmserve.kvstore.tiers.object.bucket import Bucket
from llmserve.kvstore.tiers.object.layout import Entry, record_checksum
from llmserve.kvstore.tiers.object.ranges import Extent, Range, plan_ranges
from llmserve.kvstore.tiers.object.threads import Threads
from llmserve.kvstore.tiers.object.trouble import RequestFailed


@dataclass(frozen=True, slots=True)
class Record:
    """header and data: where they go, exactly as long as the entry says."""

    entry: Entry
    header: memoryview
    data: memoryview

    def is_whole(self) -> bool:
        return record_checksum(self.entry.key, self.header, self.data) == self.entry.checksum


@dataclass(frozen=True, slots=True)
class Damage:
    """It came, but is not what was written."""


# None: it is there, and whole.
Fault = RequestFailed | Damage | None


class RecordReader:
    def __init__(self, bucket: Bucket, threads: Threads, range_bytes: int, gap_bytes: int) -> None:
        self._bucket, self._threads = bucket, threads
        self._range_bytes, self._gap_bytes = range_bytes, gap_bytes

    async def read(self, path: str, records: Sequence[Record]) -> list[Fault]:
        """In their order. What is damaged is asked for once more: it may have been so on the way."""
        faults = await _Fetch(self._bucket, self._threads, path, records).run(self._plan(records))
        again = [number for number, fault in enumerate(faults) if isinstance(fault, Damage)]
        if again:
            few = [records[number] for number in again]
            second = await _Fetch(self._bucket, self._threads, path, few).run(self._plan(few))
            for number, fault in zip(again, second, strict=True):
                faults[number] = fault
        return faults

    def _plan(self, records: Sequence[Record]) -> list[Range]:
        extents = [
            Extent(number, record.entry.offset, record.entry.length_bytes)
            for number, record in enumerate(records)
        ]
        wanted = [extent for extent in extents if extent.length_bytes]
        return plan_ranges(wanted, self._range_bytes, self._gap_bytes)


class _Fetch:
    """One call: its ranges run together, and each record is checked when the last of its ranges is there."""

    def __init__(self, bucket: Bucket, threads: Threads, path: str, records: Sequence[Record]) -> None:
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
        await self._threads.run(lambda: self._scatter(range_, body))
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
        whole = await self._threads.run(lambda: [self._records[number].is_whole() for number in ready])
        for number, is_whole in zip(ready, whole, strict=True):
            self._faults[number] = None if is_whole else Damage()


def _place(source: "np.ndarray[tuple[int], np.dtype[np.uint8]]", start: int, to: memoryview, at: int) -> None:
    """Copies what overlaps: source is at `start` of the pack, `to` begins at `at` of it."""
    begin, end = max(start, at), min(start + len(source), at + len(to))
    if begin < end:
        np.copyto(np.asarray(to[begin - at : end - at]), source[begin - start : end - start])
