"""The contract of `kvstore.tiers.base` on segment files."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmserve.core.errors import StartFailed
from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult, ReadResult, ReadTarget, TierOutcome, Usage
from llmserve.kvstore.tiers.nvme.appender import Appender
from llmserve.kvstore.tiers.nvme.blob_io import BlobIO
from llmserve.kvstore.tiers.nvme.compactor import Compactor
from llmserve.kvstore.tiers.nvme.disk import Disk, LocalDisk
from llmserve.kvstore.tiers.nvme.layout import Grave
from llmserve.kvstore.tiers.nvme.reader import Reader
from llmserve.kvstore.tiers.nvme.restore import restore
from llmserve.kvstore.tiers.nvme.segments import Index, Segments
from llmserve.kvstore.tiers.nvme.settings import NvmeSettings
from llmserve.kvstore.tiers.nvme.threads import run_one
from llmserve.kvstore.tiers.nvme.totals import Totals
from llmserve.kvstore.tiers.nvme.writer import Writer

_log = logging.getLogger(__name__)
_CLOSED = "the tier is not open"


@dataclass(frozen=True, slots=True)
class _Parts:
    """Of an open tier."""

    disk: Disk
    appender: Appender
    compactor: Compactor
    writer: Writer
    reader: Reader


class NvmeTier:
    """Life: open (once) -> aclose. open_disk: takes the directory; blocks. Errors of it: StartFailed."""

    name = "nvme"

    def __init__(self, settings: NvmeSettings, open_disk: Callable[[Path], Disk] = LocalDisk) -> None:
        self.totals = Totals()
        self._settings = settings
        self._open_disk = open_disk
        self._index = Index()
        self._segments = Segments(settings.capacity_bytes, settings.segment_size_bytes)
        self._readers = ThreadPoolExecutor(settings.read_threads, "nvme-read")
        self._writers = ThreadPoolExecutor(settings.write_threads, "nvme-write")
        self._upkeep = ThreadPoolExecutor(1, "nvme-upkeep")
        self._parts: _Parts | None = None
        self._calls = 0
        self._idle = asyncio.Event()

    def __repr__(self) -> str:
        return f"<NvmeTier {self._settings.directory} segments={len(self._segments)} {self.usage()}>"

    # -- life

    async def open(self) -> None:
        started, where = time.perf_counter(), self._settings.directory
        disk = await run_one(self._upkeep, partial(self._open_disk, where))
        self._parts = self._assemble(disk)
        try:
            await restore(disk, self._readers, self._segments, self._index)
        except OSError as error:
            raise StartFailed(f"{where} cannot be read: {error}") from error
        self._parts.compactor.look()
        self.totals.recovered_blobs = len(self._index)
        self.totals.recovery_seconds = time.perf_counter() - started
        _log.info("nvme tier open: %r in %.2f s", self, self.totals.recovery_seconds)

    async def aclose(self) -> None:
        parts, self._parts = self._parts, None
        while self._calls:
            self._idle.clear()
            await self._idle.wait()
        if parts:
            await self._close_parts(parts)
        self._readers.shutdown()
        self._writers.shutdown()
        self._upkeep.shutdown()

    def _assemble(self, disk: Disk) -> _Parts:
        settings, index, segments = self._settings, self._index, self._segments
        blob_io = BlobIO(is_direct=disk.is_direct)
        appender = Appender(
            disk,
            segments,
            blob_io,
            self._writers,
            self._upkeep,
            on_sealed=lambda: compactor.look(),
            durable=settings.durable,
        )
        compactor = Compactor(settings, disk, segments, index, blob_io, appender, self._upkeep, self.totals)
        writer = Writer(index, appender, compactor, segments.segment_bytes)
        return _Parts(disk, appender, compactor, writer, Reader(index, blob_io, self._readers))

    async def _close_parts(self, parts: _Parts) -> None:
        await parts.compactor.aclose()
        await parts.appender.aclose()
        for segment in self._segments:
            segment.file.close()
        parts.disk.close()

    # -- what is there

    def holds(self, keys: Sequence[BlobKey]) -> list[bool]:
        return [key in self._index for key in keys]

    def sizes(self, keys: Sequence[BlobKey]) -> list[int]:
        return [self._index.size_bytes(key) for key in keys]

    def held(self) -> list[tuple[BlobKey, int]]:
        return self._index.sizes()

    def usage(self) -> Usage:
        used, capacity = self._segments.used_bytes, self._segments.capacity_bytes
        return Usage(len(self._index), self._index.held_bytes, used, capacity)

    # -- calls

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]:
        with self._call() as parts:
            if parts is None:
                return [BlobResult(TierOutcome.FAILED, _CLOSED)] * len(blobs)
            results = await parts.writer.write(blobs)
        for blob, result in zip(blobs, results, strict=True):
            self.totals.written[result.outcome] += 1
            self.totals.written_bytes += blob.data.nbytes if result.outcome is TierOutcome.DONE else 0
        return results

    async def read(self, targets: Sequence[ReadTarget]) -> list[ReadResult]:
        with self._call() as parts:
            if parts is None:
                return [ReadResult(TierOutcome.FAILED, _CLOSED)] * len(targets)
            results = await parts.reader.read(targets)
            rows = zip(targets, results, strict=True)
            corrupt = [target.key for target, result in rows if result.outcome is TierOutcome.CORRUPT]
            await self._forget(parts, corrupt)
        for result in results:
            self.totals.read[result.outcome] += 1
            self.totals.read_bytes += result.length_bytes
        self.totals.corrupt += len(corrupt)
        return results

    async def remove(self, keys: Sequence[BlobKey]) -> None:
        with self._call() as parts:
            if parts:
                await self._forget(parts, keys)

    async def _forget(self, parts: _Parts, keys: Sequence[BlobKey]) -> None:
        places = [self._index.take(key) for key in dict.fromkeys(keys) if key in self._index]
        if places:
            parts.compactor.look()
            graves = [Grave(place.segment.stamp, place.offset) for place in places]
            await parts.compactor.bury(graves)

    @contextmanager
    def _call(self) -> Iterator[_Parts | None]:
        """Keeps the tier open until it ends. None: it is not open."""
        self._calls += 1
        try:
            yield self._parts
        finally:
            self._calls -= 1
            self._idle.set()
