"""What the object tier does beyond the contract of tiers: packs, owners, and getting room back."""

from pathlib import Path

import pytest
from obstore.store import MemoryStore, ObjectStore

from llmserve.buckets.failures import FailureKind, RequestFailed
from llmserve.core.errors import StartFailed
from llmserve.kvstore.tiers.base import Blob, BlobKey, ReadTarget, TierOutcome
from llmserve.kvstore.tiers.object import ObjectSettings, ObjectTier, object_tier
from llmserve.kvstore.tiers.object.bucket import Bucket

KIB = 1 << 10
SIZE = 64 * KIB
CAPACITY = 16 << 20


def key(number: int) -> BlobKey:
    return BlobKey(b"key-%028d" % number)


def blob(number: int, size: int = SIZE) -> Blob:
    return Blob(key(number), b"header", memoryview(number.to_bytes(8, "little") * (size // 8)))


def settings(owner: str = "one", **others: object) -> ObjectSettings:
    return ObjectSettings(
        "memory:///",
        owner,
        CAPACITY,
        **{"pack_bytes": 1 << 20, "linger_seconds": 0.001, "removals_seconds": 0.001} | others,  # type: ignore[arg-type]
    )


async def opened(store: ObjectStore, owner: str = "one", **others: object) -> ObjectTier:
    tier = ObjectTier(settings(owner, **others), lambda: store)
    await tier.open()
    return tier


async def put(tier: ObjectTier, *numbers: int) -> None:
    results = await tier.write([blob(number) for number in numbers])
    assert {result.outcome for result in results} <= {TierOutcome.DONE}, results


async def outcomes(tier: ObjectTier, *numbers: int) -> list[TierOutcome]:
    targets = [ReadTarget(key(number), memoryview(bytearray(SIZE))) for number in numbers]
    results = await tier.read(targets)
    for number, target, result in zip(numbers, targets, results, strict=True):
        assert result.outcome is not TierOutcome.DONE or target.buffer == blob(number).data
    return [result.outcome for result in results]


def packs(store: ObjectStore, owner: str = "one") -> list[str]:
    paths = [meta["path"] for chunk in store.list(owner) for meta in chunk]
    return [path for path in paths if path.endswith(".pack")]


# -- packs


async def test_blobs_share_a_pack_and_a_full_one_goes_up_at_once() -> None:
    store = MemoryStore()
    tier = await opened(store, linger_seconds=0.02)
    await put(tier, *range(35))  # fifteen fit, with header and index
    assert len(packs(store)) == 3
    assert tier.usage().used_bytes == sum(meta["size"] for chunk in store.list() for meta in chunk)
    assert await outcomes(tier, *range(35)) == [TierOutcome.DONE] * 35
    await tier.aclose()


async def test_a_blob_larger_than_a_pack_has_one_of_its_own() -> None:
    store = MemoryStore()
    tier = await opened(store)
    (result,) = await tier.write([blob(1, 3 << 20)])
    assert result.outcome is TierOutcome.DONE
    buffer = memoryview(bytearray(3 << 20))
    (read,) = await tier.read([ReadTarget(key(1), buffer)])
    assert (read.outcome, buffer) == (TierOutcome.DONE, blob(1, 3 << 20).data)
    await tier.aclose()


async def test_an_empty_blob_needs_no_request() -> None:
    tier = await opened(MemoryStore())
    await tier.write([Blob(key(1), b"", memoryview(b""))])
    (read,) = await tier.read([ReadTarget(key(1), memoryview(b""))])
    assert (read.outcome, read.length_bytes) == (TierOutcome.DONE, 0)
    await tier.aclose()


# -- room


async def test_a_pack_with_nothing_live_is_deleted() -> None:
    store = MemoryStore()
    tier = await opened(store)
    await put(tier, *range(4))
    await tier.remove([key(number) for number in range(4)])
    await tier.swept()
    assert (packs(store), tier.usage().used_bytes) == ([], 0)
    await tier.aclose()


async def test_a_pack_half_full_of_garbage_is_rewritten() -> None:
    store = MemoryStore()
    tier = await opened(store)
    await put(tier, *range(4))
    (before,) = packs(store)
    await tier.remove([key(0), key(2)])
    await tier.swept()
    (after,) = packs(store)
    assert before != after
    assert tier.usage().used_bytes < 3 * SIZE
    assert await outcomes(tier, 0, 1, 2, 3) == [
        TierOutcome.MISSING,
        TierOutcome.DONE,
        TierOutcome.MISSING,
        TierOutcome.DONE,
    ]
    await tier.aclose()


async def test_little_garbage_stays_until_room_is_needed() -> None:
    store = MemoryStore()
    tier = await opened(store)
    numbers = list(range(15 * 14))  # fourteen packs, and the one kept free
    await put(tier, *numbers)
    before = packs(store)
    await tier.remove([key(number) for number in numbers[::5]])
    await tier.swept()
    assert packs(store) == before
    await put(tier, *range(1000, 1030))
    assert not set(before) <= set(packs(store)), "some were rewritten"
    assert tier.usage().used_bytes <= CAPACITY
    kept = [number for number in numbers if number % 5]
    assert await outcomes(tier, *kept) == [TierOutcome.DONE] * len(kept)
    await tier.aclose()


async def test_what_is_removed_while_its_pack_is_rewritten_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The new pack has it. The process is killed when the removal has been settled."""
    store = MemoryStore()
    tier = await opened(store)
    await put(tier, *range(4))
    put_object = Bucket.put

    async def removes_meanwhile(bucket: Bucket, path: str, body: memoryview) -> None:
        if path.endswith(".pack"):
            await tier.remove([key(3)])
        await put_object(bucket, path, body)

    monkeypatch.setattr(Bucket, "put", removes_meanwhile)
    await tier.remove([key(0), key(1)])
    assert (await tier.settle_removals()).outcome is TierOutcome.DONE
    monkeypatch.undo()
    next_process = await opened(store)
    assert next_process.holds([key(number) for number in range(4)]) == [False, False, True, False]
    await next_process.aclose()
    await tier.aclose()


async def test_a_pack_that_may_be_there_is_no_settled_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its PUT failed on the way: the bucket may have it all the same, until it could be deleted."""
    store = MemoryStore()
    tier = await opened(store)
    put_object = Bucket.put

    async def arrives_and_fails(bucket: Bucket, path: str, body: memoryview) -> None:
        await put_object(bucket, path, body)
        raise RequestFailed(FailureKind.SLOW, "no answer")

    async def fails(bucket: Bucket, path: str) -> None:
        raise RequestFailed(FailureKind.SLOW, "no answer")

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "put", arrives_and_fails)
        patched.setattr(Bucket, "delete", fails)
        (result,) = await tier.write([blob(1)])
        assert result.outcome is TierOutcome.FAILED
        assert (await tier.settle_removals()).outcome is TierOutcome.FAILED
    assert (await tier.settle_removals()).outcome is TierOutcome.DONE
    assert packs(store) == []
    await tier.aclose()


async def test_what_was_rewritten_is_there_for_the_next() -> None:
    store = MemoryStore()
    tier = await opened(store)
    await put(tier, *range(4))
    await tier.remove([key(0), key(2)])
    await tier.swept()
    await tier.aclose()
    again = await opened(store)
    assert again.holds([key(number) for number in range(4)]) == [False, True, False, True]
    assert await outcomes(again, 1, 3) == [TierOutcome.DONE] * 2
    await again.aclose()


# -- others


async def test_owners_read_each_other_and_delete_only_their_own() -> None:
    store = MemoryStore()
    one = await opened(store, "one")
    await put(one, 1, 2)
    two = await opened(store, "two")
    assert await outcomes(two, 1, 2) == [TierOutcome.DONE] * 2
    assert two.usage().used_bytes == 0
    await two.remove([key(1)])
    await two.swept()
    assert two.holds([key(1)]) == [False]
    assert await outcomes(one, 1) == [TierOutcome.DONE]
    await put(two, 1, 2)  # 2 is there already
    assert two.usage().blobs == 1
    await one.aclose()
    await two.aclose()


async def test_packs_of_others_that_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    one = await opened(store, "one")
    await put(one, 1, 2)
    two = await opened(store, "two")
    assert await outcomes(two, 1) == [TierOutcome.DONE]
    await one.remove([key(1), key(2)])
    await one.swept()
    assert await outcomes(two, 1) == [TierOutcome.MISSING]
    assert two.holds([key(1), key(2)]) == [False, False]
    assert caplog.text.count("is gone, and 2 blobs with it") == 1
    await one.aclose()
    await two.aclose()


async def test_what_is_no_pack_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    for path in ("one/readme.txt", "one/deep/x.pack", "x.pack", "one/short.pack", "one/odd.pack"):
        store.put(path, b"hello" * (1 if "short" in path else 100))
    tier = await opened(store)
    await put(tier, 1)
    assert await outcomes(tier, 1) == [TierOutcome.DONE]
    assert caplog.text.count("is left out") == 2
    await tier.aclose()
    assert len([meta for chunk in store.list() for meta in chunk]) == 6


async def test_no_changed_byte_of_a_pack_is_ever_read() -> None:
    store = MemoryStore()
    tier = await opened(store)
    small = [Blob(key(number), b"head", memoryview(b"data%d" % number)) for number in range(2)]
    await tier.write(small)
    await tier.aclose()
    (path,) = packs(store)
    whole = bytes(store.get(path).bytes())
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        store.put(path, bytes(changed))
        again = await opened(store)
        buffers = [memoryview(bytearray(5)) for _ in small]
        results = await again.read([ReadTarget(b.key, to) for b, to in zip(small, buffers, strict=True)])
        for written, buffer, result in zip(small, buffers, results, strict=True):
            if result.outcome is TierOutcome.DONE:
                assert (buffer, result.header) == (written.data, b"head")
        assert [result.outcome for result in results] != [TierOutcome.DONE] * 2
        await again.aclose()


# -- the start


@pytest.mark.parametrize("url", ["bogus://x", "nonsense", "az://no-account/c", "file:///proc/version/below"])
async def test_a_url_that_cannot_be_used_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StartFailed) as failed:
        await object_tier(ObjectSettings(url, "one", CAPACITY)).open()
    assert url in failed.value.message


async def test_nothing_secret_is_shown() -> None:
    tier = object_tier(ObjectSettings("s3://me:5ecret@bucket/p?sig=5ecret", "one", CAPACITY))
    assert "5ecret" not in repr(tier)
    with pytest.raises(StartFailed) as failed:
        await object_tier(ObjectSettings("bogus://me:5ecret@x?sig=5ecret", "one", CAPACITY)).open()
    assert "5ecret" not in failed.value.message


def test_an_owner_must_be_a_name() -> None:
    for owner in ("", "a/b", "../x", " "):
        with pytest.raises(StartFailed):
            ObjectSettings("memory:///", owner, CAPACITY)


async def test_a_closed_tier_refuses(tmp_path: Path) -> None:
    tier = await opened(MemoryStore())
    await put(tier, 1)
    await tier.aclose()
    (written,) = await tier.write([blob(2)])
    assert (written.outcome, await outcomes(tier, 1)) == (TierOutcome.FAILED, [TierOutcome.FAILED])
