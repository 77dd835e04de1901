"""The open segment: gives runs their places, writes them, seals what is full and opens the next."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial

from llmserve.kvstore.tiers.nvme import recovery
from llmserve.kvstore.tiers.nvme.blob_io import BlobIO, Record
from llmserve.kvstore.tiers.nvme.commit import GroupCommit
from llmserve.kvstore.tiers.nvme.disk import Disk
from llmserve.kvstore.tiers.nvme.layout import Contents, Demand, Entry, Kind, unpack_graves
from llmserve.kvstore.tiers.nvme.segments import Place, Segment, Segments, segment_name
from llmserve.kvstore.tiers.nvme.threads import run_one

_log = logging.getLogger(__name__)


class NoRoom(Exception):
    """The capacity is reached."""


class Appender:
    """All on one loop; calls may overlap. upkeep_thread: for files to be made and sealed, so that this does
    not queue behind the writes."""

    def __init__(
        self,
        disk: Disk,
        segments: Segments,
        blob_io: BlobIO,
        threads: Executor,
        upkeep_thread: Executor,
        on_sealed: Callable[[], None],
        *,
        durable: bool,
    ) -> None:
        self._disk = disk
        self._segments = segments
        self._io = blob_io
        self._threads = threads
        self._upkeep_thread = upkeep_thread
        self._on_sealed = on_sealed
        self._commit = GroupCommit(threads) if durable else None
        self._open: Segment | None = None
        self._opening = asyncio.Lock()
        self._sealing: set[asyncio.Task[None]] = set()

    async def append(self, records: Sequence[Record], *, upkeep: bool = False) -> list[Place]:
        """Writes neighbours. upkeep: may use the reserve. Cancelled: it still ends.
        Errors: NoRoom, OSError."""
        demand = _demand(records)
        segment = await self._segment_for(demand, upkeep=upkeep)
        offset = segment.place(demand)
        try:
            job = partial(self._io.write, segment.file, segment.stamp, offset, records)
            await run_one(self._threads, job)
            if self._commit:
                await self._commit.wait(segment.file)
            return _note(segment, offset, records)
        finally:
            segment.writers -= 1
            self._seal_if_over(segment)

    async def aclose(self) -> None:
        """Seals the open segment. After the last `append` has ended."""
        if self._open:
            segment, self._open = self._open, None
            self._seal_if_over(segment)
        await asyncio.gather(*self._sealing)

    # -- the open segment

    async def _segment_for(self, demand: Demand, *, upkeep: bool) -> Segment:
        """Nothing is awaited between its choice and the caller's `place`."""
        async with self._opening:
            if self._open and self._open.fits(demand):
                return self._open
            size = self._segments.size_of_next(demand)
            if not self._segments.has_room_for(size, upkeep=upkeep):
                raise NoRoom(f"over its capacity of {self._segments.capacity_bytes} bytes")
            return await self._open_next(size)

    async def _open_next(self, size: int) -> Segment:
        stamp = secrets.randbits(64)
        file = await run_one(self._upkeep_thread, partial(self._disk.create, segment_name(stamp), size))
        before, self._open = self._open, Segment(stamp, file, size)
        self._segments.add(self._open)
        if before:
            self._seal_if_over(before)
        return self._open

    # -- sealing

    def _seal_if_over(self, segment: Segment) -> None:
        """When it is no longer the open one, and its last run has ended."""
        if segment is self._open or segment.writers or segment.is_sealed:
            return
        task = asyncio.get_running_loop().create_task(self._seal(segment), name="nvme.seal")
        self._sealing.add(task)
        task.add_done_callback(self._sealing.discard)

    async def _seal(self, segment: Segment) -> None:
        contents = Contents(list(segment.contents.entries), list(segment.contents.graves))
        end = segment.placed.size_bytes
        job = partial(recovery.seal, segment.file, segment.stamp, contents, end)
        try:
            await run_one(self._upkeep_thread, job)
            self._segments.resize(segment, segment.file.size_bytes)
        except OSError as error:
            _log.warning("segment %016x stays without a footer: %s", segment.stamp, error)
        segment.contents.entries.clear()
        segment.is_sealed = True
        self._on_sealed()


def _demand(records: Sequence[Record]) -> Demand:
    graves = sum(len(record.data) // 16 for record in records if record.kind is Kind.GRAVES)
    return Demand(sum(record.size_bytes for record in records), len(records), graves)


def _note(segment: Segment, offset: int, records: Sequence[Record]) -> list[Place]:
    """Enters what is written into the contents."""
    places = []
    for record in records:
        places.append(Place(segment, offset, len(record.data)))
        if record.kind is Kind.GRAVES:
            segment.contents.graves.extend(unpack_graves(record.data))
        else:
            segment.contents.entries.append(Entry(record.key, offset, len(record.data)))
        offset += record.size_bytes
    return places
