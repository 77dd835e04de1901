"""Room comes back: what is removed gets a grave; a segment of which little is left is copied and dropped."""

import asyncio
import logging
import mmap
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from functools import partial

from llmserve.kvstore.tiers.base import BlobKey, TierOutcome
from llmserve.kvstore.tiers.nvme import recovery
from llmserve.kvstore.tiers.nvme.appender import Appender, NoRoom
from llmserve.kvstore.tiers.nvme.blob_io import RUN_BYTES, BlobIO, Record, Wanted, neighbours
from llmserve.kvstore.tiers.nvme.disk import Disk
from llmserve.kvstore.tiers.nvme.layout import Entry, Grave, Kind, pack_graves, padded
from llmserve.kvstore.tiers.nvme.segments import Index, Place, Segment, Segments, segment_name
from llmserve.kvstore.tiers.nvme.settings import NvmeSettings
from llmserve.kvstore.tiers.nvme.threads import run_one
from llmserve.kvstore.tiers.nvme.totals import Totals

_log = logging.getLogger(__name__)
_NEARLY_FULL = 0.75  # below this share of the capacity only what is dead is dropped: copying wears the medium


class Compactor:
    """One segment at a time. All on one loop."""

    def __init__(
        self,
        settings: NvmeSettings,
        disk: Disk,
        segments: Segments,
        index: Index,
        blob_io: BlobIO,
        appender: Appender,
        thread: Executor,
        totals: Totals,
    ) -> None:
        self._settings = settings
        self._disk = disk
        self._segments = segments
        self._index = index
        self._io = blob_io
        self._appender = appender
        self._thread = thread
        self._totals = totals
        self._one_at_a_time = asyncio.Lock()
        self._dropped = 0
        self._cannot_bury = False
        self._is_closed = False
        self._background: asyncio.Task[None] | None = None

    async def make_room(self) -> bool:
        """For a write that has none: whether a segment was dropped since it was called."""
        before = self._dropped
        async with self._one_at_a_time:
            if self._dropped != before:
                return True
            segment = self._segments.emptiest(self._settings.compact_at_need_below)
            return segment is not None and await self._evacuate(segment)

    def look(self) -> None:
        """After something died or was sealed: begins in the background what is worth it."""
        if self._is_closed or (self._background and not self._background.done()):
            return
        if self._worth_it():
            self._background = asyncio.create_task(self._tidy(), name="nvme.compact")

    async def bury(self, graves: Iterable[Grave]) -> None:
        """So that what is removed stays so after a restart; that it cannot be is logged once."""
        needed = self._segments.needed_graves(graves)
        if not needed:
            return
        try:
            await self._appender.append([_graves_record(needed)], upkeep=True)
            self._cannot_bury = False
        except (NoRoom, OSError) as error:
            if not self._cannot_bury:
                _log.warning("removed blobs may be back after a restart: %s", error)
            self._cannot_bury = True

    async def aclose(self) -> None:
        """Ends after the segment that is being copied."""
        self._is_closed = True
        if self._background:
            await self._background

    # -- parts

    def _worth_it(self) -> Segment | None:
        nearly_full = self._segments.used_bytes > _NEARLY_FULL * self._segments.capacity_bytes
        return self._segments.emptiest(self._settings.compact_below if nearly_full else 0.0)

    async def _tidy(self) -> None:
        async with self._one_at_a_time:
            while not self._is_closed and (segment := self._worth_it()):
                if not await self._evacuate(segment):
                    return

    async def _evacuate(self, segment: Segment) -> bool:
        """Whether its room is free."""
        moved: list[Grave] = []
        try:
            for run in await self._live_runs(segment):
                moved += await self._move(segment, run)
            await self._drop(segment)
        except NoRoom:
            await self.bury(moved)
            return False
        except OSError as error:
            _log.warning("%r cannot be reclaimed: %s", segment, error)
            segment.is_stuck = True
            await self.bury(moved)
            return False
        return True

    async def _live_runs(self, segment: Segment) -> list[list[Wanted]]:
        """What lives in it, with memory to copy it through. Errors: OSError."""
        if not segment.live_blobs:
            return []
        found = await run_one(self._thread, partial(recovery.find, segment.file, segment.stamp))
        live = [entry for entry in found.contents.entries if self._index.is_at(segment, entry)]
        return neighbours([_wanted(entry, memoryview(b"")) for entry in live], RUN_BYTES)

    async def _move(self, segment: Segment, run: Sequence[Wanted]) -> list[Grave]:
        """Where they were. Errors: NoRoom, OSError."""
        entries = [Entry(wanted.key, wanted.offset, wanted.length) for wanted in run]
        records = await self._copies(segment, entries)
        if records:
            places = await self._appender.append(records, upkeep=True)
            keys = (record.key for record in records)
            await self._take_over(segment, entries, dict(zip(keys, places, strict=True)))
        return [Grave(segment.stamp, entry.offset) for entry in entries]

    async def _copies(self, segment: Segment, entries: Sequence[Entry]) -> list[Record]:
        """What is damaged is forgotten."""
        memory = memoryview(mmap.mmap(-1, sum(padded(entry.length) for entry in entries) or 1))
        run = []
        for entry in entries:
            run.append(_wanted(entry, memory))
            memory = memory[padded(entry.length) :]
        results = await run_one(self._thread, partial(self._io.read, segment.file, segment.stamp, run))
        records = []
        for wanted, entry, result in zip(run, entries, results, strict=True):
            if result.outcome is TierOutcome.DONE:
                data = wanted.buffer[: wanted.length]
                records.append(Record(Kind.BLOB, wanted.key, result.header, data))
            elif self._index.is_at(segment, entry):
                self._index.take(entry.key)
                self._totals.corrupt += 1
                _log.warning("a damaged blob in %r is dropped: %s", segment, result.reason)
        return records

    async def _take_over(
        self, segment: Segment, entries: Sequence[Entry], places: dict[BlobKey, Place]
    ) -> None:
        """What was removed meanwhile gets a grave at its new place."""
        late = []
        for entry in entries:
            place = places.get(entry.key)
            if place is None:
                continue
            if self._index.is_at(segment, entry):
                self._index.put(entry.key, place)
                self._totals.copied_bytes += entry.length
            else:
                late.append(Grave(place.segment.stamp, place.offset))
        await self.bury(late)

    async def _drop(self, segment: Segment) -> None:
        """Graves in it that are still needed move first. Errors: NoRoom, OSError."""
        needed = self._segments.needed_graves(segment.contents.graves, leaving=segment)
        if needed:
            await self._appender.append([_graves_record(needed)], upkeep=True)
        await segment.is_unread.wait()
        await run_one(self._thread, partial(self._disk.remove, segment_name(segment.stamp)))
        await run_one(self._thread, segment.file.close)
        self._segments.forget(segment)
        self._dropped += 1
        self._totals.dropped_segments += 1


def _graves_record(graves: list[Grave]) -> Record:
    return Record(Kind.GRAVES, BlobKey(b""), b"", memoryview(pack_graves(graves)))


def _wanted(entry: Entry, buffer: memoryview) -> Wanted:
    return Wanted(entry.key, entry.offset, entry.length, buffer)
