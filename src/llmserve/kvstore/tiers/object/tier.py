"""The object tier, put together. What it promises stands in `tiers.base` and in this package's docstring."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from obstore.store import ObjectStore

from llmserve.buckets.connect import connect, shown
from llmserve.buckets.failures import FailureKind, RequestFailed
from llmserve.core.aio import CallsInFlight
from llmserve.core.clock import Clock, SystemClock
from llmserve.core.errors import StartFailed
from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult, ReadResult, ReadTarget, TierOutcome, Usage
from llmserve.kvstore.tiers.object.bucket import Bucket, BucketCounters
from llmserve.kvstore.tiers.object.catalog import Catalog
from llmserve.kvstore.tiers.object.layout import removals_path
from llmserve.kvstore.tiers.object.packer import Packer
from llmserve.kvstore.tiers.object.reader import BlobReader
from llmserve.kvstore.tiers.object.records import RecordReader
from llmserve.kvstore.tiers.object.recovery import Recovery
from llmserve.kvstore.tiers.object.removals import RemovalLog
from llmserve.kvstore.tiers.object.settings import ObjectSettings
from llmserve.kvstore.tiers.object.sweeper import Sweeper
from llmserve.kvstore.tiers.object.uploader import Uploader

_log = logging.getLogger(__name__)

_COPY_THREADS = 2
_ADVICE = {
    FailureKind.DENIED: "check the credentials in the environment, and what they allow",
    FailureKind.GONE: "is there such a bucket?",
    FailureKind.REFUSED: "check url, endpoint and region",
}
_NOT_OPEN = "the tier is not open"


class ObjectTier:
    """open_store: gives the client of the bucket; raises StartFailed. catalog: to look at."""

    name = "object"

    def __init__(
        self, settings: ObjectSettings, open_store: Callable[[], ObjectStore], clock: Clock | None = None
    ) -> None:
        self._settings, self._open_store = settings, open_store
        self._clock = clock or SystemClock()
        self.catalog = Catalog()
        self._parts: _OpenBucket | None = None
        self._calls = CallsInFlight()
        self.counters = BucketCounters()

    def __repr__(self) -> str:
        return f"<ObjectTier {shown(self._settings.url)} {self.catalog!r}>"

    async def open(self) -> None:
        bucket = Bucket(self._open_store(), self._settings.limits, self.counters, self._clock)
        parts = _OpenBucket(self._settings, bucket, self.catalog)
        try:
            await parts.recovery.run()
        except RequestFailed as failed:
            raise StartFailed(self._why(failed)) from None
        finally:
            if not parts.recovery.is_done:
                await parts.aclose()
        self._parts = parts
        parts.sweeper.nudge()
        _log.info("object tier: open: %r", self)

    def holds(self, keys: Sequence[BlobKey]) -> list[bool]:
        return [self.catalog.find(key) is not None for key in keys]

    def sizes(self, keys: Sequence[BlobKey]) -> list[int]:
        places = map(self.catalog.find, keys)
        return [0 if place is None else place.entry.data_bytes for place in places]

    async def write(self, blobs: Sequence[Blob]) -> list[BlobResult]:
        if self._parts is None:
            return [BlobResult(TierOutcome.FAILED, _NOT_OPEN)] * len(blobs)
        with self._calls:
            return await self._parts.packer.write(blobs)

    async def read(self, targets: Sequence[ReadTarget]) -> list[ReadResult]:
        if self._parts is None:
            return [ReadResult(TierOutcome.FAILED, _NOT_OPEN)] * len(targets)
        with self._calls:
            return await self._parts.reader.read(targets)

    async def remove(self, keys: Sequence[BlobKey]) -> None:
        held = [key for key in keys if self.catalog.find(key) is not None]
        for key in held:
            self.catalog.forget(key)
        if held and self._parts is not None:
            self._parts.changed()

    async def settle_removals(self) -> BlobResult:
        if self._parts is None:
            return BlobResult(TierOutcome.FAILED, _NOT_OPEN)
        with self._calls:
            return await self._parts.settle_removals()

    def held(self) -> list[tuple[BlobKey, int]]:
        """Lists the blobs of the own packs: only their owner removes the others."""
        return self.catalog.held()

    def usage(self) -> Usage:
        catalog = self.catalog
        return Usage(catalog.blobs, catalog.held_bytes, catalog.used_bytes, self._settings.capacity_bytes)

    async def swept(self) -> None:
        """When the packs that `remove` made worth it are deleted or rewritten, as far as that works."""
        if self._parts is not None:
            await self._parts.sweeper.idle()

    async def aclose(self) -> None:
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.packer.aclose()
            await self._calls.ended()
            await parts.aclose()

    def _why(self, failed: RequestFailed) -> str:
        advice = _ADVICE.get(failed.kind, "is the server there, and reached from here?")
        return f"object tier: {shown(self._settings.url)} cannot be used ({failed.message}): {advice}"


class _OpenBucket:
    """What lives from open to close."""

    def __init__(self, settings: ObjectSettings, bucket: Bucket, catalog: Catalog) -> None:
        self._threads = ThreadPoolExecutor(_COPY_THREADS, "object-tier")
        self._tasks = TaskOwner("object-tier")
        records = RecordReader(bucket, self._threads, settings.range_bytes, settings.gap_bytes)
        uploader = Uploader(settings, bucket, catalog, self._threads)
        workers = settings.limits.reads_in_flight
        self.recovery = Recovery(settings.owner, bucket, catalog, workers)
        self._removals = RemovalLog(
            removals_path(settings.owner), bucket, catalog, self._tasks, settings.removals_seconds
        )
        self.sweeper = Sweeper(settings, bucket, catalog, records, uploader, self._tasks, self._removals.note)
        self.packer = Packer(settings, catalog, uploader, self._threads, self._tasks, self.sweeper.make_room)
        self.reader = BlobReader(catalog, records, self.changed)

    def changed(self) -> None:
        """There is garbage that was not there before."""
        self._removals.note()
        self.sweeper.nudge()

    async def settle_removals(self) -> BlobResult:
        """A pack that is being rewritten may have blobs in it that were removed meanwhile, and one whose PUT
        failed may be there: the sweep comes first."""
        self.sweeper.nudge()
        await self.sweeper.idle()
        if self.sweeper.has_doubtful_packs:
            return BlobResult(TierOutcome.FAILED, "a pack whose upload failed may be there")
        reason = await self._removals.flush()
        return BlobResult(TierOutcome.FAILED if reason else TierOutcome.DONE, reason)

    async def aclose(self) -> None:
        """What is merely tidying is cut off."""
        await self._removals.flush()
        await self._tasks.aclose()
        self._threads.shutdown()


def object_tier(settings: ObjectSettings) -> ObjectTier:
    return ObjectTier(settings, partial(connect, settings.address))
