"""Whose files stay in place, and what happens to those that come for nobody."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from llmserve.config.adapter_source import AdapterSource
from llmserve.core.adapters import BASE_MODEL, AdapterTier
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters import AdapterFiles
from llmserve.models.files import Progress, silent
from llmserve.workers.adapters.files import HostFiles, NoAdapterStore
from tests.support.adapter_pool import FakeStore, InlineThreads

A, B = AdapterDigest("a"), AdapterDigest("b")
DISK, DRAM = AdapterTier.DISK, AdapterTier.DRAM


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def files(store: FakeStore) -> HostFiles:
    return HostFiles(store, InlineThreads(), InlineThreads())


async def test_files_are_held_as_long_as_anybody_uses_them(store: FakeStore, files: HostFiles) -> None:
    async with files.on_disk("dir:/a", A) as one:
        async with files.on_disk("dir:/a", A) as other:
            assert one == other
        assert store.held == {(A, DISK)}
        async with files.in_dram(A) as near:
            assert (near.tier, store.held) == (DRAM, {(A, DISK), (A, DRAM)})
        assert store.held == {(A, DISK)}
    assert store.held == set()
    assert store.fetched == [(A, DISK), (A, DRAM)]


async def test_a_digest_that_nobody_knows_is_computed(store: FakeStore, files: HostFiles) -> None:
    store.sources["/mine"] = "a"
    async with files.on_disk("dir:/mine") as found:
        assert (found.digest, store.held) == (A, {(A, DISK)})
    assert store.held == set()


async def test_what_cannot_be_fetched_is_held_by_nobody(store: FakeStore, files: HostFiles) -> None:
    store.errors["a"] = InvalidRequest("it is wrong")
    for digest in (A, BASE_MODEL):
        with pytest.raises(InvalidRequest, match="it is wrong"):
            async with files.on_disk("dir:/a", digest):
                pass
    with pytest.raises(InvalidRequest, match="an adapter comes from"):
        async with files.on_disk("ftp:/a", A):
            pass
    assert files.tier(A) is AdapterTier.SOURCE


async def test_without_room_in_dram_they_are_used_from_disk(store: FakeStore, files: HostFiles) -> None:
    async with files.on_disk("dir:/a", A) as on_disk:
        async with files.nearest(on_disk) as nearest:
            assert nearest.tier is DRAM
        store.has_memory = False
        async with files.nearest(on_disk) as nearest:
            assert nearest is on_disk
        with pytest.raises(NotFound):
            async with files.in_dram(B):
                pass


async def test_it_knows_where_versions_were_seen_last(store: FakeStore, files: HostFiles) -> None:
    assert files.tier(A) is AdapterTier.SOURCE
    async with files.on_disk("dir:/a", A), files.on_disk("dir:/b", B), files.in_dram(B):
        assert (files.tier(A), files.tier(B)) == (DISK, DRAM)
    assert files.bytes_by_tier() == {DISK: 100, DRAM: 100}
    store.vanish("a")
    store.places.remove((B, DRAM))
    assert files.tier(A) is DISK
    await files.look([A, B])
    assert (files.tier(A), files.tier(B)) == (AdapterTier.SOURCE, DISK)
    await files.remove(B)
    assert files.tier(B) is AdapterTier.SOURCE
    assert store.places == set()


class SlowStore(FakeStore):
    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_end = Event(), Event()

    def fetch(
        self, source: AdapterSource, digest: AdapterDigest = BASE_MODEL, progress: Progress = silent
    ) -> AdapterFiles:
        self.begun.set()
        assert self.may_end.wait(10)
        return super().fetch(source, digest, progress)


@pytest.fixture
def slow() -> Iterator[SlowStore]:
    store = SlowStore()
    yield store
    store.may_end.set()


async def _use(files: HostFiles, digest: AdapterDigest) -> None:
    async with files.on_disk(f"dir:/{digest or 'a'}", digest):
        await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("digest", [A, BASE_MODEL])
async def test_what_comes_after_its_user_gave_up_is_released(slow: SlowStore, digest: AdapterDigest) -> None:
    threads = ThreadPoolExecutor(1)
    files = HostFiles(slow, InlineThreads(), threads)
    user = asyncio.create_task(_use(files, digest))
    await asyncio.to_thread(slow.begun.wait, 10)
    user.cancel()
    await asyncio.wait({user})
    slow.may_end.set()
    await asyncio.to_thread(threads.shutdown)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert slow.fetched == [(A, DISK)]
    assert slow.held == set()


async def test_the_end_of_one_use_leaves_alone_what_comes_for_the_next(slow: SlowStore) -> None:
    threads = ThreadPoolExecutor(2)
    files = HostFiles(slow, InlineThreads(), threads)
    first, second = (asyncio.create_task(_use(files, A)) for _ in range(2))
    await asyncio.to_thread(slow.begun.wait, 10)
    first.cancel()
    slow.may_end.set()
    await asyncio.to_thread(threads.shutdown)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert slow.held == {(A, DISK)}
    second.cancel()
    await asyncio.wait({second})
    assert slow.held == set()


async def test_what_is_on_the_host_does_not_wait_for_slow_sources(slow: SlowStore) -> None:
    slow.places.add((B, DISK))
    files = HostFiles(slow, ThreadPoolExecutor(1), ThreadPoolExecutor(1))
    user = asyncio.create_task(_use(files, A))
    await asyncio.to_thread(slow.begun.wait, 10)
    async with asyncio.timeout(10):
        async with files.on_disk("dir:/b", B) as on_disk, files.nearest(on_disk) as near:
            assert near.tier is DRAM
        await files.look([A, B])
        await files.remove(B)
    assert not slow.places
    user.cancel()
    await asyncio.wait({user})
    await files.aclose()


async def test_a_fetch_that_waits_for_a_thread_ends_with_its_user(slow: SlowStore) -> None:
    threads = ThreadPoolExecutor(1)
    files = HostFiles(slow, InlineThreads(), threads)
    first, second = asyncio.create_task(_use(files, A)), asyncio.create_task(_use(files, B))
    await asyncio.to_thread(slow.begun.wait, 10)
    second.cancel()
    await asyncio.wait({second})
    slow.may_end.set()
    await asyncio.to_thread(threads.shutdown)
    assert slow.fetched == [(A, DISK)]
    first.cancel()
    await asyncio.wait({first})


async def test_closing_does_not_wait_for_downloads(slow: SlowStore) -> None:
    files = HostFiles(slow, ThreadPoolExecutor(1), ThreadPoolExecutor(1))
    user = asyncio.create_task(_use(files, A))
    await asyncio.to_thread(slow.begun.wait, 10)
    await files.aclose()
    await files.aclose()
    assert slow.closed
    user.cancel()
    await asyncio.wait({user})


async def test_an_engine_without_adapters_has_none() -> None:
    files = HostFiles(NoAdapterStore(), InlineThreads(), InlineThreads())
    with pytest.raises(InvalidRequest, match="runs no adapters"):
        async with files.on_disk("dir:/a"):
            pass
    with pytest.raises(InvalidRequest, match="runs no adapters"):
        async with files.on_disk("dir:/a", A):
            pass
    with pytest.raises(InvalidRequest, match="runs no adapters"):
        async with files.in_dram(A):
            pass
    await files.look([A])
    await files.remove(A)
    await files.aclose()
