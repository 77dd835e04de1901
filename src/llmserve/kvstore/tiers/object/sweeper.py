"""Gets room back: deletes packs that are all garbage, and rewrites those with much of it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from llmserve.buckets.failures import FailureKind, RequestFailed
from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.tiers.base import TierOutcome
from llmserve.kvstore.tiers.object.bucket import Bucket
from llmserve.kvstore.tiers.object.catalog import Catalog, Pack
from llmserve.kvstore.tiers.object.layout import FOOTER_BYTES, PackEntry
from llmserve.kvstore.tiers.object.records import Fault, PackedRecord, RecordDamage, RecordReader
from llmserve.kvstore.tiers.object.settings import ObjectSettings
from llmserve.kvstore.tiers.object.uploader import PackBuilder, RecordSlot, Uploader, cost_bytes

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
        tasks: TaskOwner,
        rewrote: Callable[[], object],
    ) -> None:
        """rewrote: called when a pack has been written that may have garbage in it from the start: what was
        removed while it was on its way."""
        self._settings, self._bucket, self._catalog, self._records = settings, bucket, catalog, records
        self._uploader, self._tasks, self._rewrote = uploader, tasks, rewrote
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

    @property
    def has_doubtful_packs(self) -> bool:
        """Whether a pack may be in the bucket although its PUT failed."""
        return bool(self._uploader.doubtful)

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
        return True

    # -- rewriting

    async def _rewrite(self, pack: Pack) -> bool:
        """Its live blobs are in another pack, or found to be none."""
        entries = pack.live_entries()
        room = FOOTER_BYTES + sum(cost_bytes(entry.key, entry.length_bytes) for entry in entries)
        builder = await self._uploader.begin(room)
        try:
            if not await self._fill(builder, pack, entries):
                return False
            if not builder.entries:
                return True
            result = await self._uploader.upload(builder, instead_of=pack)
        finally:
            self._uploader.give_up(builder)  # nothing, once it is up
        self._rewrote()
        return result.outcome is TierOutcome.DONE

    async def _fill(self, builder: PackBuilder, pack: Pack, entries: list[PackEntry]) -> bool:
        slots = _slots(builder, entries)
        records = [
            PackedRecord(entry, slot.header, slot.data) for entry, slot in zip(entries, slots, strict=True)
        ]
        faults = await self._records.read(pack.path, records)
        for entry, slot, fault in zip(entries, slots, faults, strict=True):
            if fault is None:
                builder.keep(replace(entry, offset=slot.offset))
        return all(self._is_settled(entry, fault) for entry, fault in zip(entries, faults, strict=True))

    def _is_settled(self, entry: PackEntry, fault: Fault) -> bool:
        """False: it may still be got out of the old pack."""
        if isinstance(fault, RequestFailed) and fault.kind is not FailureKind.GONE:
            return False
        if isinstance(fault, RecordDamage):
            self._catalog.forget(entry.key)
        return True


def _slots(builder: PackBuilder, entries: list[PackEntry]) -> list[RecordSlot]:
    """Where each record goes in the builder."""
    slots, taken = [], 0
    for entry in entries:
        slots.append(builder.slot(entry.header_bytes, entry.data_bytes, taken))
        taken += entry.length_bytes
    return slots
