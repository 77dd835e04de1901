"""What was removed from packs that are still there, in an object of its own beside them.

One small object of each owner, written anew a little after something was removed, and when the tier closes.
Others read it, too: what an owner has removed they do not find.
"""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence

import xxhash

from llmserve.buckets.failures import RequestFailed
from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.tiers.object.bucket import Bucket
from llmserve.kvstore.tiers.object.catalog import Catalog
from llmserve.kvstore.tiers.object.layout import PackDamaged

_log = logging.getLogger(__name__)

Removed = Mapping[str, Sequence[int]]  # positions in packs, by the pack's path


def encode_removals(removed: Removed) -> bytes:
    """A line with the checksum of the rest."""
    body = json.dumps({"version": 1, "packs": removed}, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(body).encode() + b"\n" + body


def decode_removals(data: bytes) -> Removed:
    """Errors: PackDamaged."""
    checksum, _, body = data.partition(b"\n")
    if xxhash.xxh3_64_hexdigest(body).encode() != checksum:
        raise PackDamaged("the list of removals has another checksum")
    try:
        content = json.loads(body)
        if content["version"] != 1:
            raise PackDamaged("a list of removals of another version")
        return {str(path): list(map(int, positions)) for path, positions in content["packs"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PackDamaged(f"a list of removals that is not understood: {error!r}") from error


class RemovalLog:
    def __init__(
        self, path: str, bucket: Bucket, catalog: Catalog, tasks: TaskOwner, pause_seconds: float
    ) -> None:
        self._path, self._bucket, self._catalog = path, bucket, catalog
        self._tasks, self._pause_seconds = tasks, pause_seconds
        self._is_dirty = False
        self._writing = asyncio.Lock()
        self._later: asyncio.Task[None] | None = None

    def note(self) -> None:
        """Something was removed. Returns at once."""
        self._is_dirty = True
        if self._later is None or self._later.done():
            self._later = self._tasks.spawn("removals", self._write_later())

    async def flush(self) -> str:
        """Returns when all removals are written, or why they could not be. Then it stays to be done with the
        next removal."""
        async with self._writing:
            if not self._is_dirty:
                return ""
            self._is_dirty = False
            try:
                await self._bucket.put(self._path, memoryview(encode_removals(self._catalog.removed())))
            except RequestFailed as failed:
                self._is_dirty = True
                _log.warning("object tier: removals could not be written: %s", failed.message)
                return failed.message
        return ""

    async def _write_later(self) -> None:
        """What is removed while the list is on its way is written down by the next one."""
        while self._is_dirty:
            await asyncio.sleep(self._pause_seconds)
            if await self.flush():
                return
