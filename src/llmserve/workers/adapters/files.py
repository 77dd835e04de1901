"""The files of adapters on this host, as an event loop uses them."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Protocol, TypeVar

from llmserve.config.adapter_source import AdapterSource, parse_adapter_source
from llmserve.core.adapters import BASE_MODEL, AdapterTier
from llmserve.core.errors import InvalidRequest, LLMServeError, NotFound
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters import AdapterFiles
from llmserve.models.files import Progress, silent

_log = logging.getLogger(__name__)

T = TypeVar("T")


class AdapterStore(Protocol):
    """The part of models/adapters.AdapterCache that workers use. The contract stands there."""

    def fetch(
        self, source: AdapterSource, digest: AdapterDigest = ..., progress: Progress = ...
    ) -> AdapterFiles: ...
    def reuse(self, source: AdapterSource, digest: AdapterDigest) -> AdapterFiles: ...
    def bring_to_dram(self, digest: AdapterDigest) -> AdapterFiles: ...
    def find(self, digest: AdapterDigest) -> AdapterFiles | None: ...
    def release(self, digest: AdapterDigest, tier: AdapterTier) -> None: ...
    def remove(self, digest: AdapterDigest) -> None: ...
    def close(self) -> None: ...


class NoAdapterStore:
    """The store of a worker whose engine runs no adapters."""

    def fetch(
        self, source: AdapterSource, digest: AdapterDigest = BASE_MODEL, progress: Progress = silent
    ) -> AdapterFiles:
        raise InvalidRequest("the engine of this worker runs no adapters")

    def reuse(self, source: AdapterSource, digest: AdapterDigest) -> AdapterFiles:
        raise InvalidRequest("the engine of this worker runs no adapters")

    def bring_to_dram(self, digest: AdapterDigest) -> AdapterFiles:
        raise InvalidRequest("the engine of this worker runs no adapters")

    def find(self, digest: AdapterDigest) -> None:
        """There is none."""

    def release(self, digest: AdapterDigest, tier: AdapterTier) -> None:
        """There is none."""

    def remove(self, digest: AdapterDigest) -> None:
        """There is none."""

    def close(self) -> None:
        """There is nothing to close."""


class HostFiles:
    """Calls the store in threads, since a download may take minutes. It counts who uses files, as the store's
    holds know only whether this process does. `aclose` is idempotent."""

    def __init__(self, store: AdapterStore, threads: Executor, fetchers: Executor) -> None:
        """threads, fetchers: its own, shut down by aclose. fetchers: for what asks sources, so that slow ones
        keep nobody from what is on the host."""
        self._store, self._threads, self._fetchers = store, threads, fetchers
        self._users: Counter[tuple[AdapterDigest, AdapterTier]] = Counter()
        self._found: dict[AdapterDigest, AdapterFiles] = {}

    def tier(self, digest: AdapterDigest) -> AdapterTier:
        """Returns where a version was seen last: the directories are shared with other processes."""
        found = self._found.get(digest)
        return AdapterTier.SOURCE if found is None else found.tier

    def bytes_by_tier(self) -> Counter[AdapterTier]:
        """Sizes of the versions that this worker uses, each in its nearest place."""
        sizes: Counter[AdapterTier] = Counter()
        for found in self._found.values():
            sizes[found.tier] += found.size_bytes
        return sizes

    @asynccontextmanager
    async def on_disk(
        self, source: str, digest: AdapterDigest = BASE_MODEL, turn: asyncio.Semaphore | None = None
    ) -> AsyncIterator[AdapterFiles]:
        """Yields files that nobody removes while the context is open, fetched if need be. digest: what is
        expected. turn: bounds how many are fetched at once. Errors: those of AdapterCache.fetch."""
        place = parse_adapter_source(source)
        if not digest:
            async with turn or nullcontext():
                digest = (await self._fetch(place, digest)).digest
        with self._used(digest, AdapterTier.DISK):
            try:
                files = await self._call_and_note(self._threads, partial(self._store.reuse, place, digest))
            except NotFound:
                async with turn or nullcontext():
                    files = await self._fetch(place, digest)
            yield files

    @asynccontextmanager
    async def in_dram(self, digest: AdapterDigest) -> AsyncIterator[AdapterFiles]:
        """Yields files in DRAM that nobody removes while the context is open, of a version that is on disk.
        Errors: those of AdapterCache.bring_to_dram."""
        with self._used(digest, AdapterTier.DRAM):
            bring = partial(self._store.bring_to_dram, digest)
            yield await self._call_and_note(self._threads, bring)

    @asynccontextmanager
    async def nearest(self, on_disk: AdapterFiles) -> AsyncIterator[AdapterFiles]:
        """Yields files in DRAM, or those that are given when there is no room."""
        async with AsyncExitStack() as used:
            files = on_disk
            try:
                files = await used.enter_async_context(self.in_dram(on_disk.digest))
            except LLMServeError as error:
                _log.debug("adapter %s stays on disk: %s", on_disk.digest, error.message)
            yield files

    async def look(self, digests: Collection[AdapterDigest]) -> None:
        """Looks where versions are now: other processes of the host bring and remove files."""
        found = await self._call(lambda: [self._store.find(digest) for digest in digests])
        for digest, files in zip(digests, found, strict=True):
            if files is None:
                self._found.pop(digest, None)
            else:
                self._found[digest] = files

    async def remove(self, digest: AdapterDigest) -> None:
        """Deletes the files, unless another process uses them."""
        self._found.pop(digest, None)
        await self._call(partial(self._store.remove, digest))

    async def aclose(self) -> None:
        """Does not wait for downloads: they end with the process."""
        for threads in (self._threads, self._fetchers):
            threads.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    # -- threads

    async def _fetch(self, source: AdapterSource, digest: AdapterDigest) -> AdapterFiles:
        def progress(text: str) -> None:
            _log.info("adapter %s: %s", source, text)

        return await self._call_and_note(self._fetchers, partial(self._store.fetch, source, digest, progress))

    @contextmanager
    def _used(self, digest: AdapterDigest, tier: AdapterTier) -> Iterator[None]:
        """Opened before a thread begins: nobody else releases what that is given."""
        self._users[digest, tier] += 1
        try:
            yield
        finally:
            self._users[digest, tier] -= 1
            self._release_unused(digest, tier)

    async def _call_and_note(self, threads: Executor, get: Callable[[], AdapterFiles]) -> AdapterFiles:
        """When its caller is cancelled, a thread that has begun goes on, and what it brings is released."""
        job = threads.submit(get)
        work = asyncio.wrap_future(job)
        work.add_done_callback(self._note)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            job.cancel()
            raise

    def _note(self, work: asyncio.Future[AdapterFiles]) -> None:
        if work.cancelled() or work.exception() is not None:
            return
        files = work.result()
        self._found[files.digest] = files
        self._release_unused(files.digest, files.tier)

    def _release_unused(self, digest: AdapterDigest, tier: AdapterTier) -> None:
        if not self._users[digest, tier]:
            del self._users[digest, tier]
            self._store.release(digest, tier)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
