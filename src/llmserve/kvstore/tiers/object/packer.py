"""Gathers the blobs of writes into builders, and sends these up when they are full or have waited."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor

from llmserve.core.aio import run_in_thread
from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult, TierOutcome
from llmserve.kvstore.tiers.object.catalog import Catalog
from llmserve.kvstore.tiers.object.layout import FOOTER_BYTES, LONGEST_HEADER_BYTES, LONGEST_KEY_BYTES
from llmserve.kvstore.tiers.object.settings import ObjectSettings
from llmserve.kvstore.tiers.object.uploader import PackBuilder, Uploader, cost_bytes

_DONE = BlobResult(TierOutcome.DONE)
_CLOSED = BlobResult(TierOutcome.FAILED, "the tier is closed")

Pending = asyncio.Future[BlobResult]


class Packer:
    """A blob is copied before the caller's `write` can end: a cancelled one leaves nothing behind that
    looks at its memory. make_room: tries to leave so many bytes free, and says whether it did."""

    def __init__(
        self,
        settings: ObjectSettings,
        catalog: Catalog,
        uploader: Uploader,
        threads: Executor,
        tasks: TaskOwner,
        make_room: Callable[[int], Awaitable[bool]],
    ) -> None:
        self._settings, self._catalog, self._uploader = settings, catalog, uploader
        self._threads, self._tasks, self._make_room = threads, tasks, make_room
        self._pending: dict[BlobKey, Pending] = {}
        self._builder: PackBuilder | None = None  # the one being filled
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
        if waiting := {builder.done for builder in self._uploader.builders}:
            await asyncio.wait(waiting)

    async def _take(self, blob: Blob) -> BlobResult | Pending:
        if self._is_closed:
            return _CLOSED
        if self._catalog.find(blob.key) is not None:
            return _DONE
        if blob.key in self._pending:
            return self._pending[blob.key]
        if len(blob.key) > LONGEST_KEY_BYTES or len(blob.header) > LONGEST_HEADER_BYTES:
            return BlobResult(TierOutcome.FAILED, "its key or its header is longer than the contract allows")
        return await self._copy(blob)

    async def _copy(self, blob: Blob) -> BlobResult | Pending:
        cost = cost_bytes(blob.key, len(blob.header) + blob.data.nbytes)
        builder = await self._builder_for(cost)
        if builder is None:
            return BlobResult(
                TierOutcome.FULL, f"over its capacity of {self._settings.capacity_bytes} bytes, less one pack"
            )
        builder.keep(await run_in_thread(self._threads, lambda: builder.copy(blob)))
        self._pending[blob.key] = builder.done
        return builder.done

    async def _builder_for(self, cost: int) -> PackBuilder | None:
        """None: there is no room. One pack's room is kept free: a rewrite needs it before it frees any."""
        if self._builder is not None and not self._builder.fits(cost):
            self._send()
        if not await self._make_room(cost + FOOTER_BYTES + self._settings.pack_limit_bytes):
            return None
        if self._builder is None:
            self._builder = await self._uploader.begin(
                max(self._settings.pack_limit_bytes, cost + FOOTER_BYTES)
            )
            self._tasks.spawn("linger", self._linger(self._builder))
        return self._builder

    async def _linger(self, builder: PackBuilder) -> None:
        await asyncio.sleep(self._settings.linger_seconds)
        async with self._filling:
            if self._builder is builder:
                self._send()

    def _send(self) -> None:
        """Under the lock, so that nothing is being copied into it."""
        builder, self._builder = self._builder, None
        if builder is None:
            return
        if not builder.entries:
            self._uploader.give_up(builder)
        else:
            self._tasks.spawn("upload", self._upload(builder))

    async def _upload(self, builder: PackBuilder) -> None:
        try:
            await self._uploader.upload(builder)
        finally:
            for key in builder.keys:
                self._pending.pop(key, None)
