"""Files and batches in a bucket, which all apiservers share.

An object that grows is a folder of parts, whose names sort in the order of the appends. Imported only when
`batches.location` is a URL.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import count
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import ObjectStore

from llmserve.buckets.failures import FailureKind, RequestFailed
from llmserve.core.errors import StorageFull
from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.tiers.object.bucket import retried
from llmserve.kvstore.tiers.object.settings import RequestLimits, RetryPolicy

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_RETRIES, _CLAIM_RETRIES = RequestLimits().write, RequestLimits().read
# Small parts, as those of a journal, take their time in requests.
_PARTS_AT_ONCE = 8
# A claim that was not renewed for so long is another's to take. In parts of it: when it is renewed, and when
# its holder gives it up because that did not work.
CLAIM_SECONDS = 30.0
_RENEWED, _GIVEN_UP = 0.25, 0.75
# And when another's claim that does not change is forgotten: its batch has ended.
_FORGOTTEN = 10.0


class _Tag(NamedTuple):
    """One version of an object: S3 and Azure know it by the first, GCS by the second."""

    e_tag: str | None
    version: str | None


class ObjectClaim:
    """A small object that its holder rewrites again and again, each time under the condition that nobody else
    did. Others watch it change, so no clocks need to agree."""

    def __init__(self, storage: "BucketStorage", path: str, tag: _Tag, claim_seconds: float) -> None:
        self.lost = asyncio.Event()
        self._storage, self._path, self._tag, self._seconds = storage, path, tag, claim_seconds
        self._owner = TaskOwner("batch-claim")
        self._owner.spawn("renew", self._renew())

    async def _renew(self) -> None:
        tag: _Tag | None = self._tag
        while tag is not None:
            self._tag = tag
            try:
                async with asyncio.timeout(_GIVEN_UP * self._seconds):
                    tag = await self._renewed()
            except TimeoutError:
                tag = None
        self.lost.set()

    async def _renewed(self) -> _Tag | None:
        """Returns the next tag; None when another has the claim."""
        while True:
            await asyncio.sleep(_RENEWED * self._seconds)
            try:
                return await self._storage.replace(self._path, self._tag)
            except (RequestFailed, StorageFull) as failed:
                _log.warning("a claim could not be renewed, and is tried again: %s", failed.message)

    async def release(self) -> None:
        await self._owner.aclose()
        if not self.lost.is_set():
            await self._storage.replace(self._path, self._tag, free=True)
            self.lost.set()


class BucketStorage:
    """store: a client of obstore without retries of its own."""

    def __init__(self, store: ObjectStore, claim_seconds: float = CLAIM_SECONDS) -> None:
        self._store, self._claim_seconds = store, claim_seconds
        born = time.time_ns()
        self._parts = (f"{born:020d}-{number:010d}" for number in count())
        # The tag of another's claim, and when it was new. The latest is the last.
        self._seen: dict[str, tuple[_Tag, float]] = {}

    async def put(self, path: str, data: bytes) -> None:
        await self._try(lambda: obstore.put_async(self._store, path, data, use_multipart=False))

    async def append(self, path: str, data: bytes) -> None:
        await self.put(f"{path}/{next(self._parts)}", data)

    async def get(self, path: str) -> bytes | None:
        found = await self._get(path)
        return None if found is None else found[0]

    async def read(self, path: str) -> AsyncGenerator[bytes, None]:
        names = await self.names(path)
        for start in range(0, len(names), _PARTS_AT_ONCE):
            paths = [f"{path}/{name}" for name in names[start : start + _PARTS_AT_ONCE]]
            for part in await asyncio.gather(*map(self.get, paths)):
                if part is not None:
                    yield part

    async def names(self, folder: str) -> list[str]:
        async def listed() -> list[str]:
            found = await obstore.list_with_delimiter_async(self._store, folder)
            paths = [*(one["path"] for one in found["objects"]), *found["common_prefixes"]]
            # Some servers list an empty folder as an object of its own.
            inside = (path.rstrip("/") for path in paths if path.rstrip("/") != folder)
            return sorted(path.rpartition("/")[2] for path in inside)

        return await self._try(listed)

    async def delete(self, path: str) -> None:
        parts = [f"{path}/{name}" for name in await self.names(path)]

        async def deleted() -> None:
            try:
                await obstore.delete_async(self._store, [*parts, path])
            except FileNotFoundError:
                return

        await self._try(deleted)

    async def claim(self, path: str) -> ObjectClaim | None:
        found = await self._get(path)
        if found is None:
            self._seen.pop(path, None)
            return None
        data, tag = found
        if data and not self._is_abandoned(path, tag):
            return None
        self._seen.pop(path, None)
        fresh = await self.replace(path, tag)
        return None if fresh is None else ObjectClaim(self, path, fresh, self._claim_seconds)

    async def replace(self, path: str, tag: _Tag, *, free: bool = False) -> _Tag | None:
        """Rewrites a claim if it still has this tag. Returns its new tag; None when somebody else was
        faster."""
        data = b"" if free else json.dumps({"claim": uuid4().hex}).encode()

        async def replaced() -> _Tag | None:
            try:
                mode: Any = {name: text for name, text in tag._asdict().items() if text is not None}
                result = await obstore.put_async(self._store, path, data, mode=mode, use_multipart=False)
            except (PreconditionError, AlreadyExistsError, FileNotFoundError):
                return None
            return _Tag(result["e_tag"], result["version"])

        return await self._try(replaced, _CLAIM_RETRIES)

    def _is_abandoned(self, path: str, tag: _Tag) -> bool:
        now = time.monotonic()
        seen, since = self._seen.get(path, (None, now))
        if seen != tag:
            self._see(path, tag, now)
            return False
        return now - since >= self._claim_seconds

    def _see(self, path: str, tag: _Tag, now: float) -> None:
        self._seen.pop(path, None)
        self._seen[path] = tag, now
        while now - next(iter(self._seen.values()))[1] > _FORGOTTEN * self._claim_seconds:
            del self._seen[next(iter(self._seen))]

    async def _get(self, path: str) -> tuple[bytes, _Tag] | None:
        async def got() -> tuple[bytes, _Tag] | None:
            try:
                result = await obstore.get_async(self._store, path)
            except FileNotFoundError:
                return None
            return bytes(await result.bytes_async()), _Tag(result.meta["e_tag"], result.meta["version"])

        return await self._try(got)

    async def _try(self, attempt: Callable[[], Awaitable[_T]], retries: RetryPolicy = _RETRIES) -> _T:
        """Errors: RequestFailed (an Unavailable); StorageFull."""
        try:
            return await retried(attempt, retries, lambda kind: None)
        except RequestFailed as failed:
            if failed.kind is FailureKind.FULL:
                raise StorageFull(f"the bucket of batches is full: {failed.message}") from failed
            raise
