"""Builds packs in memory and uploads them: how many at once, what room they take, and the one PUT of each."""

import asyncio
import secrets
import time
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from llmserve.buckets.failures import TRANSIENT, FailureKind, RequestFailed
from llmserve.core.aio import run_in_thread
from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult, TierOutcome
from llmserve.kvstore.tiers.object.bucket import Bucket
from llmserve.kvstore.tiers.object.catalog import Catalog, Pack
from llmserve.kvstore.tiers.object.layout import (
    FOOTER_BYTES,
    LONGEST_ENTRY_BYTES,
    PackEntry,
    encode_tail,
    entry_bytes,
    pack_path,
    record_checksum,
)
from llmserve.kvstore.tiers.object.settings import ObjectSettings


def cost_bytes(key: bytes, length_bytes: int) -> int:
    """What a record takes in a pack, with its entry."""
    return length_bytes + entry_bytes(key)


@dataclass(frozen=True, slots=True)
class RecordSlot:
    """Where a record goes."""

    header: memoryview
    data: memoryview
    offset: int


class PackBuilder:
    """room_bytes: of the whole pack to be. done: answers every blob in it. A slot is taken with `slot`,
    filled, and kept with `keep`; what is not kept is garbage, or is taken again when nothing was kept
    after it."""

    def __init__(self, path: str, room_bytes: int) -> None:
        self.path = path
        self.entries: list[PackEntry] = []
        self.done: asyncio.Future[BlobResult] = asyncio.get_running_loop().create_future()
        self.size_bytes = FOOTER_BYTES  # of the pack, as it stands
        self._records_bytes = 0
        self._buffer = np.empty(max(room_bytes, FOOTER_BYTES + LONGEST_ENTRY_BYTES), np.uint8).data

    def fits(self, cost: int) -> bool:
        return self.size_bytes + cost <= len(self._buffer)

    def slot(self, header_bytes: int, data_bytes: int, after: int = 0) -> RecordSlot:
        """after: bytes of slots taken and not kept yet."""
        start = self._records_bytes + after
        middle, end = start + header_bytes, start + header_bytes + data_bytes
        return RecordSlot(self._buffer[start:middle], self._buffer[middle:end], start)

    def copy(self, blob: Blob) -> PackEntry:
        """Into the next slot. On a thread: takes a millisecond for a few MiB."""
        slot = self.slot(len(blob.header), blob.data.nbytes)
        slot.header[:] = blob.header
        # numpy lets the other threads run while it copies, slices of memoryviews do not
        np.copyto(np.asarray(slot.data), np.asarray(blob.data.cast("B")))
        checksum = record_checksum(blob.key, blob.header, slot.data)
        return PackEntry(blob.key, slot.offset, len(blob.header), blob.data.nbytes, checksum)

    def keep(self, entry: PackEntry) -> None:
        self.entries.append(entry)
        self.size_bytes += cost_bytes(entry.key, entry.length_bytes)
        self._records_bytes = max(self._records_bytes, entry.offset + entry.length_bytes)

    def body(self) -> memoryview:
        """The pack, finished."""
        tail = encode_tail(self.entries, self._records_bytes)
        end = self._records_bytes + len(tail)
        self._buffer[self._records_bytes : end] = tail
        return self._buffer[:end]

    def pack(self, size_bytes: int) -> Pack:
        return Pack(self.path, size_bytes, self.entries, mine=True)

    @property
    def keys(self) -> list[BlobKey]:
        return [entry.key for entry in self.entries]


_DONE = BlobResult(TierOutcome.DONE)


class Uploader:
    """A builder that was begun is either uploaded or given up: until then it takes memory and room."""

    def __init__(self, settings: ObjectSettings, bucket: Bucket, catalog: Catalog, threads: Executor) -> None:
        self._settings, self._bucket, self._catalog = settings, bucket, catalog
        self._threads = threads
        self._builders: set[PackBuilder] = set()
        # One is being filled while the others go up.
        self._memory = asyncio.Semaphore(settings.limits.uploads_in_flight + 1)
        # Packs whose PUT failed, and may be there all the same.
        self.doubtful: set[str] = set()

    @property
    def room_bytes(self) -> int:
        """Bytes of the capacity that neither packs nor builders take."""
        builders = sum(builder.size_bytes for builder in self._builders)
        return self._settings.capacity_bytes - self._catalog.used_bytes - builders

    @property
    def builders(self) -> frozenset[PackBuilder]:
        return frozenset(self._builders)

    async def begin(self, room_bytes: int) -> PackBuilder:
        """Waits while there are as many builders as may be."""
        await self._memory.acquire()
        builder = PackBuilder(
            pack_path(self._settings.owner, time.time_ns(), secrets.token_hex(4)), room_bytes
        )
        self._builders.add(builder)
        return builder

    def give_up(self, builder: PackBuilder) -> None:
        self._end(builder, BlobResult(TierOutcome.FAILED, "given up"))

    async def upload(self, builder: PackBuilder, instead_of: Pack | None = None) -> BlobResult:
        """Its result is that of each of its blobs, which are found when this returns DONE."""
        result = BlobResult(TierOutcome.FAILED, "the upload was cut off")
        try:
            body = await run_in_thread(self._threads, builder.body)
            await self._bucket.put(builder.path, body)
            self._catalog.add(builder.pack(len(body)), instead_of=instead_of)
            result = _DONE
        except RequestFailed as failed:
            if failed.kind in TRANSIENT:
                self.doubtful.add(builder.path)
            full = failed.kind is FailureKind.FULL
            result = BlobResult(TierOutcome.FULL if full else TierOutcome.FAILED, failed.message)
        finally:
            self._end(builder, result)
        return result

    def _end(self, builder: PackBuilder, result: BlobResult) -> None:
        if builder not in self._builders:
            return
        self._builders.discard(builder)
        self._memory.release()
        if not builder.done.done():
            builder.done.set_result(result)
