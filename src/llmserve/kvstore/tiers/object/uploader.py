"""Drafts become packs: how many there may be at once, what room they take, and their one PUT."""

import asyncio
import secrets
import time

from llmserve.kvstore.tiers.base import BlobResult, Outcome
from llmserve.kvstore.tiers.object.bucket import Bucket
from llmserve.kvstore.tiers.object.catalog import Catalog, Pack
from llmserve.kvstore.tiers.object.counters import Counters
from llmserve.kvstore.tiers.object.draft import Draft
from llmserve.kvstore.tiers.object.names import pack_path
from llmserve.kvstore.tiers.object.settings import ObjectSettings
from llmserve.kvstore.tiers.object.threads import Threads
from llmserve.kvstore.tiers.object.trouble import PASSING, RequestFailed, Trouble

_DONE = BlobResult(Outcome.DONE)


class Uploader:
    """A draft that was begun is either uploaded or given up: until then it takes memory and room."""

    def __init__(
        self, settings: ObjectSettings, bucket: Bucket, catalog: Catalog, threads: Threads, counters: Counters
    ) -> None:
        self._settings, self._bucket, self._catalog = settings, bucket, catalog
        self._threads, self._counters = threads, counters
        self._drafts: set[Draft] = set()
        # One is being filled while the others go up.
        self._memory = asyncio.Semaphore(settings.limits.uploads_in_flight + 1)
        # Packs whose PUT failed, and may be there all the same.
        self.doubtful: set[str] = set()

    @property
    def room_bytes(self) -> int:
        """Of the capacity, what neither packs nor drafts take."""
        drafts = sum(draft.size_bytes for draft in self._drafts)
        return self._settings.capacity_bytes - self._catalog.used_bytes - drafts

    @property
    def drafts(self) -> frozenset[Draft]:
        return frozenset(self._drafts)

    async def begin(self, room_bytes: int) -> Draft:
        """Waits while there are as many drafts as may be."""
        await self._memory.acquire()
        draft = Draft(pack_path(self._settings.owner, time.time_ns(), secrets.token_hex(4)), room_bytes)
        self._drafts.add(draft)
        return draft

    def give_up(self, draft: Draft) -> None:
        self._end(draft, BlobResult(Outcome.FAILED, "given up"))

    async def upload(self, draft: Draft, instead_of: Pack | None = None) -> BlobResult:
        """Its result is that of each of its blobs, which are found when this returns DONE."""
        result = BlobResult(Outcome.FAILED, "the upload was cut off")
        try:
            body = await self._threads.run(draft.body)
            await self._bucket.put(draft.path, body)
            self._catalog.add(draft.pack(len(body)), instead_of=instead_of)
            self._counters.bytes_written += len(body)
            result = _DONE
        except RequestFailed as failed:
            if failed.trouble in PASSING:
                self.doubtful.add(draft.path)
            full = failed.trouble is Trouble.FULL
            result = BlobResult(Outcome.FULL if full else Outcome.FAILED, failed.message)
        finally:
            self._end(draft, result)
        return result

    def _end(self, draft: Draft, result: BlobResult) -> None:
        if draft not in self._drafts:
            return
        self._drafts.discard(draft)
        self._memory.release()
        if not draft.done.done():
            draft.done.set_result(result)
