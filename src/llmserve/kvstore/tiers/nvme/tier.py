"""The contract of `kvstore.tiers.base` on a file of blobs and a file of their heads."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmserve.core.aio import CallsInFlight, run_in_thread
from llmserve.core.errors import StartFailed
from llmserve.kvstore.tiers.base import (
    Blob,
    BlobKey,
    BlobResult,
    ReadResult,
    ReadTarget,
    TierOutcome,
    Usage,
)
from llmserve.kvstore.tiers.nvme.disk import Disk, LocalDisk
from llmserve.kvstore.tiers.nvme.reader import Reader
from llmserve.kvstore.tiers.nvme.record_io import RecordIO
from llmserve.kvstore.tiers.nvme.recovery import TierFiles, open_files
from llmserve.kvstore.tiers.nvme.space import Space
from llmserve.kvstore.tiers.nvme.writer import Writer

_log = logging.getLogger(__name__)
_CLOSED = "the tier is not open"
# The rest is for heads, for rounding up to whole runs, and for what is read while it is removed.
_SHARE_OF_BLOBS = 0.95


@dataclass(frozen=True, slots=True)
class NvmeSettings:
    """directory: used by this tier alone; made when it is not there. durable: a write is DONE when the medium
    has it, and outlives a power failure."""

    directory: Path
    capacity_bytes: int
    durable: bool = False
    read_threads: int = 4
    write_threads: int = 6

    @property
    def blob_capacity_bytes(self) -> int:
        """Bytes that blobs may take, each with its pages, so that no write is FULL."""
        return int(self.capacity_bytes * _SHARE_OF_BLOBS)


@dataclass(frozen=True, slots=True)
class _OpenFiles:
    disk: Disk
    files: TierFiles
    writer: Writer
    reader: Reader


class NvmeTier:
    """Life: open (once) -> aclose. open_disk: locks the directory; blocks. Its errors: StartFailed."""

    name = "nvme"

    def __init__(self, settings: NvmeSettings, open_disk: Callable[[Path], Disk] = LocalDisk) -> None:
        self.space = Space(settings.capacity_bytes)
        self._settings = settings
        self._open_disk = open_disk
        self._readers = ThreadPoolExecutor(settings.read_threads, "nvme-read")
        self._writers = ThreadPoolExecutor(settings.write_threads, "nvme-write")
        self._grower = ThreadPoolExecutor(1, "nvme-grow")  # does not wait behind writes
        self._parts: _OpenFiles | None = None
        self._calls = CallsInFlight()

    def __repr__(self) -> str:
        return f"<NvmeTier {self._settings.directory} {self.usage()}>"

    # -- life

    async def open(self) -> None:
        started = time.perf_counter()
        await run_in_thread(self._writers, self._open)
        _log.info("nvme tier open: %r in %.2f s", self, time.perf_counter() - started)

    async def aclose(self) -> None:
        parts, self._parts = self._parts, None
        await self._calls.ended()
        if parts:
            await run_in_thread(self._writers, partial(_close, parts))
        self._readers.shutdown()
        self._writers.shutdown()
        self._grower.shutdown()

    def _open(self) -> None:
        """On a thread."""
        where = self._settings.directory
        disk = self._open_disk(where)
        try:
            files = open_files(disk, where, self.space)
        except OSError as error:
            disk.close()
            raise StartFailed(f"{where} cannot be read: {error}") from error
        except BaseException:
            disk.close()
            raise
        record_io = RecordIO(files.data, is_direct=disk.is_direct)
        writer = Writer(
            self.space, files, record_io, self._writers, self._grower, durable=self._settings.durable
        )
        self._parts = _OpenFiles(disk, files, writer, Reader(self.space, record_io, self._readers))

    # -- what is there

    def holds(self, keys: Sequence[BlobKey]) -> list[bool]:
        return [key in self.space for key in keys]

    def sizes(self, keys: Sequence[BlobKey]) -> list[int]:
        places = map(self.space.find, keys)
        return [place.length if place else 0 for place in places]

    def held(self) -> list[tuple[BlobKey, int]]:
        return self.space.sizes()

    def usage(self) -> Usage:
        return self.space.usage()

    # -- calls

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]:
        if self._parts is None:
            return [BlobResult(TierOutcome.FAILED, _CLOSED)] * len(blobs)
        with self._calls:
            return await self._parts.writer.write(blobs)

    async def read(self, targets: Sequence[ReadTarget]) -> list[ReadResult]:
        if self._parts is None:
            return [ReadResult(TierOutcome.FAILED, _CLOSED)] * len(targets)
        with self._calls:
            parts = self._parts
            results = await parts.reader.read(targets)
            rows = zip(targets, results, strict=True)
            corrupt = [target.key for target, result in rows if result.outcome is TierOutcome.CORRUPT]
            await parts.writer.remove(corrupt)
        return results

    async def remove(self, keys: Sequence[BlobKey]) -> None:
        if self._parts is not None:
            with self._calls:
                await self._parts.writer.remove(keys)

    async def settle_removals(self) -> BlobResult:
        if self._parts is None:
            return BlobResult(TierOutcome.FAILED, _CLOSED)
        with self._calls:
            return await self._parts.writer.settle_removals()


def _close(parts: _OpenFiles) -> None:
    """What the medium does not have yet it gets now, as far as it takes it."""
    try:
        parts.files.data.sync()
        parts.files.heads.file.sync()
    except OSError as error:
        _log.warning("nvme tier: blobs may be lost by a power failure: %s", error)
    parts.files.close()
    parts.disk.close()
