"""Gets room back: deletes packs that are all garbage, and rewrites those with much of it."""

import asyncio
import logging
from dataclasses import replace

from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.tiers.base import Outcome
from llmserve.kvstore.tiers.object.bucket import Bucket
from llmserve.kvstore.tiers.object.catalog import Catalog, Pack
from llmserve.kvstore.tiers.object.counters import Counters
from llmserve.kvstore.tiers.object.draft import Draft, Slot, cost_bytes
from llmserve.kvstore.tiers.object.layout import FOOTER_BYTES, Entry
from llmserve.kvstore.tiers.object.records import Damage, Fault, Record, RecordReader
from llmserve.kvstore.tiers.object.settings import ObjectSettings
from llmserve.kvstore.tiers.object.trouble import RequestFailed, Trouble
from llmserve.kvstore.tiers.object.uploader import Uploader

_log = logging.getLogger(__name__)


class Sweeper:
    """One pack at a time. What fails is left for the next time."""

    def __init__(
        self,
        settings: ObjectSettings,
        bucket: Bucket,
        catalog: Catalog,
        records: RecordReader,
        uploader: Uploader,
        counters: Counters,
        tasks: TaskOwner,
    ) -> None:
        self._settings, self._bucket, self._catalog, self._records = settings, bucket, catalog, records
        self._uploader, self._counters, self._tasks = uploader, counters, tasks
        self._lock = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None

    def nudge(self) -> None:
        """There may be garbage. Returns at once."""
        if self._running is None or self._running.done():
            self._running = self._tasks.spawn("sweep", self._sweep())

    async def idle(self) -> None:
        """When what nudge began has ended."""
        if self._running is not None:
            await asyncio.wait((self._running,))

    async def make_room(self, needed_bytes: int) -> bool:
        """Rewrites what it must so that so many bytes are free; false when that is not to be had."""
        if self._uploader.room_bytes >= needed_bytes:
            return True
        async with self._lock:
            while self._uploader.room_bytes < needed_bytes:
                pack = self._catalog.to_rewrite(self._settings.pressed_share)
                if pack is None or not await self._retire(pack):
                    return False
        return True

    async def _sweep(self) -> None:
        async with self._lock:
            for path in list(self._uploader.doubtful):
                await self._delete(path)
            while (pack := self._catalog.to_rewrite(self._settings.compact_share)) is not None:
                if not await self._retire(pack):
                    return

    async def _retire(self, pack: Pack) -> bool:
        """False: it is as it was."""
        pack.is_retiring = True
        try:
            if pack.live_count and not await self._rewrite(pack):
                return False
            if not await self._delete(pack.path):
                return False
            self._catalog.drop(pack)
        finally:
            pack.is_retiring = False
        return True

    async def _delete(self, path: str) -> bool:
        try:
            await self._bucket.delete(path)
        except RequestFailed as failed:
            _log.warning("object tier: %s could not be deleted: %s", path, failed.message)
            return False
        self._uploader.doubtful.discard(path)
        self._counters.packs_deleted += 1
        return True

    # -- rewriting

    async def _rewrite(self, pack: Pack) -> bool:
        """Its live blobs are in another pack, or found to be none."""
        entries = pack.live_entries()
        room = FOOTER_BYTES + sum(cost_bytes(entry.key, entry.length_bytes) for entry in entries)
        draft = await self._uploader.begin(room)
        try:
            if not await self._fill(draft, pack, entries):
                return False
            if not draft.entries:
                return True
            result = await self._uploader.upload(draft, instead_of=pack)
        finally:
            self._uploader.give_up(draft)  # nothing, once it is up
        self._counters.packs_rewritten += result.outcome is Outcome.DONE
        return result.outcome is Outcome.DONE

    async def _fill(self, draft: Draft, pack: Pack, entries: list[Entry]) -> bool:
        slots = _slots(draft, entries)
        records = [Record(entry, slot.header, slot.data) for entry, slot in zip(entries, slots, strict=True)]
        faults = await self._records.read(pack.path, records)
        for entry, slot, fault in zip(entries, slots, faults, strict=True):
            if fault is None:
                draft.keep(replace(entry, offset=slot.offset))
        return all(self._is_settled(entry, fault) for entry, fault in zip(entries, faults, strict=True))

    def _is_settled(self, entry: Entry, fault: Fault) -> bool:
        """False: it may still be got out of the old pack."""
        if isinstance(fault, RequestFailed) and fault.trouble is not Trouble.GONE:
            return False
        if isinstance(fault, Damage):
            self._catalog.forget(entry.key)
        return True


def _slots(draft: Draft, entries: list[Entry]) -> list[Slot]:
    """Where each record goes in the draft."""
    slots, taken = [], 0
    for entry in entries:
        slots.append(draft.slot(entry.header_bytes, entry.data_bytes, taken))
        taken += entry.length_bytes
    return slots
