"""The contract of BatchStorage, on a directory and on a real S3 server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from llmserve.apiserver.batches.bucket import BucketStorage
from llmserve.apiserver.batches.disk import DiskStorage
from llmserve.apiserver.batches.storage import BatchStorage
from llmserve.buckets.connect import BucketAddress, connect
from llmserve.core.errors import StorageFull
from tests.support.seaweed import BUCKET, REGION, Seaweed, credentials

CLAIM_SECONDS = 1.5
_prefixes = itertools.count()


@dataclass
class Kit:
    """What several apiservers see of one storage."""

    open_another: Callable[[], BatchStorage]

    def __post_init__(self) -> None:
        self.a, self.b = self.open_another(), self.open_another()


@pytest.fixture(params=["disk", "bucket"])
async def kit(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Kit]:
    if request.param == "disk":
        yield Kit(lambda: DiskStorage(tmp_path))
        return
    server: Seaweed = request.getfixturevalue("s3_server")
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/batches-{next(_prefixes)}"
    store = connect(BucketAddress(url, server.endpoint, REGION))
    yield Kit(lambda: BucketStorage(store, CLAIM_SECONDS))


async def _read(storage: BatchStorage, path: str) -> bytes:
    return b"".join([piece async for piece in storage.read(path)])


async def test_whole_objects(kit: Kit) -> None:
    assert await kit.a.get("x/1") is None
    await kit.a.put("x/1", b"one")
    await kit.a.put("x/1", b"two")
    await kit.a.put("x/y/2", b"")
    assert (await kit.b.get("x/1"), await kit.b.get("x/y/2")) == (b"two", b"")
    assert (await kit.b.names("x"), await kit.b.names("z")) == (["1", "y"], [])
    for _ in range(2):
        await kit.b.delete("x/1")
    assert (await kit.a.get("x/1"), await kit.a.names("x")) == (None, ["y"])


async def test_objects_that_grow(kit: Kit) -> None:
    assert await _read(kit.a, "x/1") == b""
    for number in range(12):
        await kit.a.append("x/1", b"%d," % number)
    await kit.b.append("x/1", b"by another")
    await kit.b.append("x/10", b"a neighbour")
    assert await _read(kit.b, "x/1") == b"0,1,2,3,4,5,6,7,8,9,10,11,by another"
    assert await kit.a.names("x") == ["1", "10"]
    await kit.a.delete("x/1")
    assert (await _read(kit.b, "x/1"), await kit.a.names("x")) == (b"", ["10"])


async def test_one_has_a_claim(kit: Kit) -> None:
    assert await kit.a.claim("open/1") is None  # there is none
    await kit.a.put("open/1", b"")
    claims = await asyncio.gather(*(kit.open_another().claim("open/1") for _ in range(5)))
    (claim,) = [one for one in claims if one is not None]
    assert await kit.b.claim("open/1") is None
    await asyncio.sleep(1.5 * CLAIM_SECONDS)
    assert await kit.b.claim("open/1") is None  # it is renewed
    assert not claim.lost.is_set()
    for _ in range(2):
        await claim.release()
    again = await kit.b.claim("open/1")
    assert again is not None
    await kit.b.delete("open/1")
    await again.release()
    assert await kit.a.claim("open/1") is None


async def test_a_claim_whose_holder_died_is_taken_over(kit: Kit) -> None:
    await kit.a.put("open/1", b"")
    claim = await kit.a.claim("open/1")
    assert claim is not None
    await _die(claim)
    async with asyncio.timeout(20 * CLAIM_SECONDS):
        while (taken := await kit.b.claim("open/1")) is None:  # noqa: ASYNC110
            await asyncio.sleep(CLAIM_SECONDS / 4)
    await taken.release()


async def _die(claim: object) -> None:
    """Ends what a dead process does not do: the kernel closes its files, and it renews nothing."""
    if hasattr(claim, "_fd"):
        await claim.release()  # type: ignore[attr-defined]
    else:
        await claim._owner.aclose()  # type: ignore[attr-defined]


async def test_a_holder_notices_that_another_has_its_claim(
    s3_server: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)
    address = BucketAddress(f"s3://{BUCKET}/lost", s3_server.endpoint, REGION)
    storage = BucketStorage(connect(address), CLAIM_SECONDS)
    await storage.put("open/1", b"")
    claim = await storage.claim("open/1")
    assert claim is not None
    await storage.put("open/1", b"another's")
    async with asyncio.timeout(20 * CLAIM_SECONDS):
        await claim.lost.wait()
    await claim.release()
    assert await storage.get("open/1") == b"another's"


async def test_a_holder_gives_up_the_claim_that_a_full_bucket_does_not_renew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = BucketStorage(MemoryStore(), 0.2)
    await storage.put("open/1", b"")
    claim = await storage.claim("open/1")
    assert claim is not None
    tries = itertools.count()

    async def full(*_: object, **__: object) -> None:
        next(tries)
        raise StorageFull("the bucket of batches is full")

    monkeypatch.setattr(storage, "replace", full)
    async with asyncio.timeout(10):
        await claim.lost.wait()
    await claim.release()
    assert next(tries) > 1  # it was tried again before


async def test_claims_of_others_are_not_remembered_for_ever() -> None:
    store = MemoryStore()
    holder, watcher = BucketStorage(store, 60.0), BucketStorage(store, 0.001)
    for number in range(20):
        await holder.put(f"open/{number}", b"")
        claim = await holder.claim(f"open/{number}")
        assert claim is not None
        assert await watcher.claim(f"open/{number}") is None
        await holder.delete(f"open/{number}")
        await claim.release()
        await asyncio.sleep(0.002)
    assert len(watcher._seen) < 20
