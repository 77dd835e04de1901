"""Writes and removes blobs: each key once, whoever asks; neighbours together. All on one loop.

Order: the data, then the head, then the index. Removal: the index, then the head, then the room is free. So a
blob whose write was not DONE is not found after a crash, and no page is used anew while a head names it.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial

from llmserve.core.aio import run_in_thread, wait_ended
from llmserve.core.errors import InvalidRequest
from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult, TierOutcome
from llmserve.kvstore.tiers.nvme.disk import is_no_space
from llmserve.kvstore.tiers.nvme.heads import (
    MAX_HEADER_BYTES,
    MAX_KEY_BYTES,
    PAGE,
    Place,
    stored_pages,
)
from llmserve.kvstore.tiers.nvme.record_io import CALL_BLOBS, CALL_BYTES, RecordIO
from llmserve.kvstore.tiers.nvme.recovery import TierFiles
from llmserve.kvstore.tiers.nvme.space import Space

_log = logging.getLogger(__name__)
_DONE = BlobResult(TierOutcome.DONE)


class Writer:
    """grower: the thread that makes files longer. durable: a write is DONE when the medium has it."""

    def __init__(
        self,
        space: Space,
        files: TierFiles,
        record_io: RecordIO,
        threads: Executor,
        grower: Executor,
        *,
        durable: bool,
    ) -> None:
        self._space, self._files, self._io = space, files, record_io
        self._threads, self._grower = threads, grower
        self._durable = durable
        self._running: dict[BlobKey, asyncio.Task[dict[BlobKey, BlobResult]]] = {}
        self._writing = asyncio.Lock()
        self._cannot_erase = False
        self._unerased: set[int] = set()  # free slots whose heads are still in the file

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]:
        """Errors: InvalidRequest for a key or header that is too long."""
        for blob in blobs:
            _check(blob)
        fresh = {
            blob.key: blob for blob in blobs if blob.key not in self._space and blob.key not in self._running
        }
        for group in _groups(list(fresh.values())):
            task = asyncio.create_task(self._write_group(group), name="nvme.write")
            self._running.update((blob.key, task) for blob in group)
        awaited = {blob.key: self._running[blob.key] for blob in blobs if blob.key in self._running}
        await wait_ended(list(awaited.values()))
        return [awaited[blob.key].result()[blob.key] if blob.key in awaited else _DONE for blob in blobs]

    async def remove(self, keys: Sequence[BlobKey]) -> None:
        places = [place for key in dict.fromkeys(keys) if (place := self._space.forget(key))]
        if places:
            await wait_ended([self._erase(places)])

    async def settle_removals(self) -> BlobResult:
        """Erases the heads that could not be erased before, and syncs."""
        async with self._writing:  # so that no new blob takes their slots
            slots = sorted(self._unerased)
            try:
                await run_in_thread(self._threads, partial(self._erase_for_good, slots))
            except OSError as error:
                return BlobResult(TierOutcome.FAILED, f"erase failed: {error}")
            self._unerased.difference_update(slots)
        return _DONE

    def _erase_for_good(self, slots: Sequence[int]) -> None:
        """On a thread. Errors: OSError."""
        self._files.heads.erase(slots)
        self._files.heads.file.sync()

    # -- groups: never cancelled, only those that wait for them are

    async def _write_group(self, blobs: Sequence[Blob]) -> dict[BlobKey, BlobResult]:
        results: dict[BlobKey, BlobResult] = {}
        placed: list[tuple[Place, Blob]] = []
        try:
            async with self._writing:  # of the whole group, so that it lies in a row
                for blob in blobs:
                    try:
                        placed.append((await self._place(blob), blob))
                        self._unerased.difference_update(placed[-1][0].slots)
                    except _NoRoom as full:
                        results[blob.key] = BlobResult(TierOutcome.FULL, str(full))
                    except OSError as error:
                        results[blob.key] = _failed(error)
            if placed:
                outcome = await self._write_placed(placed)
                results.update((blob.key, outcome) for _, blob in placed)
            return results
        finally:
            for blob in blobs:
                del self._running[blob.key]

    async def _write_placed(self, placed: Sequence[tuple[Place, Blob]]) -> BlobResult:
        sequences = [self._space.sequence() for _ in placed]
        try:
            heads = await run_in_thread(self._threads, partial(self._write_files, placed, sequences))
        except OSError as error:
            for place, _ in placed:
                self._space.give(place)
            return _failed(error)
        for _, key, place in heads:
            self._space.keep(key, place)
        return _DONE

    def _write_files(
        self, placed: Sequence[tuple[Place, Blob]], sequences: Sequence[int]
    ) -> list[tuple[int, BlobKey, Place]]:
        """On a thread. Errors: OSError."""
        places = self._io.write(placed)
        if self._durable:
            self._files.data.sync()
        rows = zip(placed, sequences, places, strict=True)
        heads = [(sequence, blob.key, place) for (_, blob), sequence, place in rows]
        try:
            self._files.heads.write(heads)
            if self._durable:
                self._files.heads.file.sync()
        except OSError:
            with suppress(OSError):  # what has reached the medium is not to be found
                self._files.heads.erase([slot for place in places for slot in place.slots])
            raise
        return heads

    async def _erase(self, places: Sequence[Place]) -> None:
        """Afterwards their room is free. A head that cannot be erased is logged once: pages that it names and
        that are written anew do not match its checksum, so what it may bring back is right or a miss."""
        slots = [slot for place in places for slot in place.slots]
        try:
            await run_in_thread(self._threads, partial(self._files.heads.erase, slots))
            self._cannot_erase = False
        except OSError as error:
            if not self._cannot_erase:
                _log.warning("removed blobs may be back after a restart: %s", error)
            self._cannot_erase = True
            self._unerased.update(slots)
        for place in places:
            self._space.give(place)

    # -- room

    async def _place(self, blob: Blob) -> Place:
        """Errors: _NoRoom, OSError when a file cannot grow."""
        length, header_bytes = blob.data.nbytes, len(blob.header)
        pages = stored_pages(length, header_bytes)
        if pages * PAGE > self._space.capacity_bytes:
            raise self._no_room()
        if not self._space.has_slot:
            await self._grow_heads()
        place = self._space.take(length, header_bytes, in_pieces=False)
        while place is None and (size := self._space.data_growth_bytes(pages)):
            await self._grow_data(size)
            place = self._space.take(length, header_bytes, in_pieces=False)
        place = place or self._space.take(length, header_bytes, in_pieces=True)
        if place is None:
            raise self._no_room()
        return place

    async def _grow_heads(self) -> None:
        size = self._space.heads_growth_bytes()
        if not size:
            raise self._no_room()
        file = self._files.heads.file
        await run_in_thread(self._grower, partial(file.resize, self._space.heads_bytes + size))
        self._space.heads_grew(size)

    async def _grow_data(self, size: int) -> None:
        await run_in_thread(self._grower, partial(self._files.data.resize, self._space.data_bytes + size))
        self._space.data_grew(size)

    def _no_room(self) -> "_NoRoom":
        return _NoRoom(f"over its capacity of {self._space.capacity_bytes} bytes")


class _NoRoom(Exception):
    """The capacity is reached."""


def _check(blob: Blob) -> None:
    if len(blob.key) > MAX_KEY_BYTES or len(blob.header) > MAX_HEADER_BYTES:
        raise InvalidRequest(f"a key of {len(blob.key)} or a header of {len(blob.header)} bytes is too long")


def _failed(error: OSError) -> BlobResult:
    outcome = TierOutcome.FULL if is_no_space(error) else TierOutcome.FAILED
    return BlobResult(outcome, f"write failed: {error}")


def _groups(blobs: Sequence[Blob]) -> list[list[Blob]]:
    """As many blobs together as one call takes, at least one."""
    groups: list[list[Blob]] = []
    size = 0
    for blob in blobs:
        size += blob.data.nbytes
        if groups and size <= CALL_BYTES and len(groups[-1]) < CALL_BLOBS:
            groups[-1].append(blob)
        else:
            groups.append([blob])
            size = blob.data.nbytes
    return groups
