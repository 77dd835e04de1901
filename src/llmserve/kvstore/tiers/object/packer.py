"""Gathers the blobs of writes into drafts, and sends these up when they are full or have waited."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult, Outcome
from llmserve.kvstore.tiers.object.catalog import Catalog
from llmserve.kvstore.tiers.object.draft import Draft, cost_bytes
from llmserve.kvstore.tiers.object.layout import FOOTER_BYTES, LONGEST_HEADER_BYTES, LONGEST_KEY_BYTES
from llmserve.kvstore.tiers.object.settings import ObjectSettings
from llmserve.kvstore.tiers.object.threads import Threads
from llmserve.kvstore.tiers.object.uploader import Uploader

_DONE = BlobResult(Outcome.DONE)
_CLOSED = BlobResult(Outcome.FAILED, "the tier is closed")

Pending = asyncio.Future[BlobResult]


class Packer:
    """A blob is copied before the caller's `write` can end: a cancelled one leaves nothing behind that
    looks at its memory. make_room: tries to leave so many bytes free, and says whether it did."""

    def __init__(
        self,
        settings: ObjectSettings,
        catalog: Catalog,
        uploader: Uploader,
        threads: Threads,
        tasks: TaskOwner,
        make_room: Callable[[int], Awaitable[bool]],
    ) -> None:
        self._settings, self._catalog, self._uploader = settings, catalog, uploader
        self._threads, self._tasks, self._make_room = threads, tasks, make_room
        self._pending: dict[BlobKey, Pending] = {}
        self._draft: Draft | None = None  # the one being filled
        self._filling = asyncio.Lock()
        self._is_closed = False

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]:
        async with self._filling:
            answers = [await self._take(blob) for blob in blobs]
        pending = {answer for answer in answers if isinstance(answer, asyncio.Future)}
        if pending:
            await asyncio.wait(pending)
        return [answer.result() if isinstance(answer, asyncio.Future) else answer for answer in answers]

    async def aclose(self) -> None:
        """Takes no more, sends up what it has, and waits for what is on its way."""
        self._is_closed = True
        async with self._filling:
            self._send()
        if waiting := {draft.done for draft in self._uploader.drafts}:
            await asyncio.wait(waiting)

    async def _take(self, blob: Blob) -> BlobResult | Pending:
        if self._is_closed:
            return _CLOSED
        if self._catalog.find(blob.key) is not None:
            return _DONE
        if blob.key in self._pending:
            return self._pending[blob.key]
        if len(blob.key) > LONGEST_KEY_BYTES or len(blob.header) > LONGEST_HEADER_BYTES:
            return BlobResult(Outcome.FAILED, "its key or its header is longer than the contract allows")
        return await self._copy(blob)

    async def _copy(self, blob: Blob) -> BlobResult | Pending:
        cost = cost_bytes(blob.key, len(blob.header) + blob.data.nbytes)
        draft = await self._draft_for(cost)
        if draft is None:
            return BlobResult(
                Outcome.FULL, f"over its capacity of {self._settings.capacity_bytes} bytes, less one pack"
            )
        draft.keep(await self._threads.run(lambda: draft.copy(blob)))
        self._pending[blob.key] = draft.done
        return draft.done

    async def _draft_for(self, cost: int) -> Draft | None:
        """None: there is no room. One pack's room is kept free: a rewrite needs it before it frees any."""
        if self._draft is not None and not self._draft.fits(cost):
            self._send()
        if not await self._make_room(cost + FOOTER_BYTES + self._settings.pack_limit_bytes):
            return None
        if self._draft is None:
            self._draft = await self._uploader.begin(
                max(self._settings.pack_limit_bytes, cost + FOOTER_BYTES)
            )
            self._tasks.spawn("linger", self._linger(self._draft))
        return self._draft

    async def _linger(self, draft: Draft) -> None:
        await asyncio.sleep(self._settings.linger_seconds)
        async with self._filling:
            if self._draft is draft:
                self._send()

    def _send(self) -> None:
        """Under the lock, so that nothing is being copied into it."""
        draft, self._draft = self._draft, None
        if draft is None:
            return
        if not draft.entries:
            self._uploader.give_up(draft)
        else:
            self._tasks.spawn("upload", self._upload(draft))

    async def _upload(self, draft: Draft) -> None:
        try:
            await self._uploader.upload(draft)
        finally:
            for key in draft.keys:
                self._pending.pop(key, None)
