"""Writes of blobs: each key once, whoever asks; neighbours together."""

import asyncio
from collections.abc import Sequence

from llmserve.core.errors import InvalidRequest
from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult, TierOutcome
from llmserve.kvstore.tiers.nvme.appender import Appender, NoRoom
from llmserve.kvstore.tiers.nvme.blob_io import RUN_BYTES, Record, cut_into_runs
from llmserve.kvstore.tiers.nvme.compactor import Compactor
from llmserve.kvstore.tiers.nvme.disk import is_no_space
from llmserve.kvstore.tiers.nvme.layout import MAX_HEADER_BYTES, MAX_KEY_BYTES, Kind
from llmserve.kvstore.tiers.nvme.segments import Index, Place
from llmserve.kvstore.tiers.nvme.threads import all_ended

_DONE = BlobResult(TierOutcome.DONE)


class Writer:
    def __init__(self, index: Index, appender: Appender, compactor: Compactor, segment_bytes: int) -> None:
        self._index = index
        self._appender = appender
        self._compactor = compactor
        self._run_bytes = min(RUN_BYTES, segment_bytes // 4)
        self._running: dict[BlobKey, asyncio.Task[BlobResult]] = {}

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]:
        fresh = {blob.key: _record(blob) for blob in blobs if self._is_new(blob.key)}
        records = list(fresh.values())
        for run in cut_into_runs([record.size_bytes for record in records], self._run_bytes):
            task = asyncio.create_task(self._write_run(records[run]), name="nvme.write")
            self._running.update((record.key, task) for record in records[run])
        awaited = {blob.key: self._running[blob.key] for blob in blobs if blob.key in self._running}
        await all_ended(list(awaited.values()))
        return [awaited[blob.key].result() if blob.key in awaited else _DONE for blob in blobs]

    def _is_new(self, key: BlobKey) -> bool:
        return key not in self._index and key not in self._running

    async def _write_run(self, records: Sequence[Record]) -> BlobResult:
        """The outcome of all. Never cancelled: those that wait for it are."""
        try:
            for record, place in zip(records, await self._append(records), strict=True):
                self._index.put(record.key, place)
            return _DONE
        except NoRoom as error:
            return BlobResult(TierOutcome.FULL, str(error))
        except OSError as error:
            outcome = TierOutcome.FULL if is_no_space(error) else TierOutcome.FAILED
            return BlobResult(outcome, f"write failed: {error}")
        finally:
            for record in records:
                del self._running[record.key]

    async def _append(self, records: Sequence[Record]) -> list[Place]:
        """Errors: NoRoom, OSError."""
        while True:
            try:
                return await self._appender.append(records)
            except NoRoom:
                if not await self._compactor.make_room():
                    raise


def _record(blob: Blob) -> Record:
    """Errors: InvalidRequest."""
    if len(blob.key) > MAX_KEY_BYTES or len(blob.header) > MAX_HEADER_BYTES:
        raise InvalidRequest(f"a key of {len(blob.key)} or a header of {len(blob.header)} bytes is too long")
    return Record(Kind.BLOB, blob.key, blob.header, blob.data.cast("B"))
