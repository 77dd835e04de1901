"""The object tier on a real S3 server when something is wrong: a miss and a reason, never wrong bytes."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from llmserve.buckets.connect import connect
from llmserve.buckets.failures import FailureKind
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import StartFailed
from llmserve.kvstore.tiers.base import Blob, BlobKey, ReadResult, ReadTarget, TierOutcome
from llmserve.kvstore.tiers.object import ObjectSettings, ObjectTier, RequestLimits, RetryPolicy
from llmserve.kvstore.tiers.object.bucket import BucketOperation
from tests.support.faulty_s3 import Fault, FaultyS3, Kind
from tests.support.seaweed import BUCKET, SECRET_KEY, Seaweed, credentials

SIZE = 128 << 10
QUICK = RequestLimits(
    reads_in_flight=4,
    uploads_in_flight=2,
    read=RetryPolicy(3, 0.5, 2.0, 0.001, 0.002),
    write=RetryPolicy(3, 1.0, 4.0, 0.001, 0.002),
)
BACK_SECONDS = 50.0
PAUSE_SECONDS = 120.0  # longer than any gate's


def key(number: int) -> BlobKey:
    return BlobKey(b"key-%028d" % number)


def blob(number: int) -> Blob:
    return Blob(key(number), b"header", memoryview(number.to_bytes(8, "little") * (SIZE // 8)))


@pytest.fixture
def settings(s3_proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> ObjectSettings:
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)
    return ObjectSettings(
        f"s3://{BUCKET}/{uuid.uuid4().hex}",
        "one",
        64 << 20,
        endpoint=s3_proxy.endpoint,
        linger_seconds=0.001,
        limits=QUICK,
    )


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def made(settings: ObjectSettings, clock: VirtualClock | None = None) -> ObjectTier:
    return ObjectTier(settings, lambda: connect(settings.address), clock)


@pytest.fixture
async def tier(settings: ObjectSettings, clock: VirtualClock) -> AsyncIterator[ObjectTier]:
    tier = made(settings, clock)
    await tier.open()
    yield tier
    await tier.aclose()


async def put(tier: ObjectTier, *numbers: int) -> set[TierOutcome]:
    return {result.outcome for result in await tier.write([blob(number) for number in numbers])}


async def get(tier: ObjectTier, *numbers: int) -> list[ReadResult]:
    targets = [ReadTarget(key(number), memoryview(bytearray(SIZE))) for number in numbers]
    results = await tier.read(targets)
    for number, target, result in zip(numbers, targets, results, strict=True):
        assert result.outcome is not TierOutcome.DONE or target.buffer == blob(number).data
    return results


async def outcome(tier: ObjectTier, number: int) -> TierOutcome:
    return (await get(tier, number))[0].outcome


def store_of(settings: ObjectSettings) -> S3Store:
    store = connect(settings.address)
    assert isinstance(store, S3Store)
    return store


def packs(store: S3Store) -> list[str]:
    return [m["path"] for chunk in store.list() for m in chunk if m["path"].endswith(".pack")]


TRANSIENT = [
    pytest.param(Fault(Kind.STATUS, status=503, code="SlowDown"), FailureKind.THROTTLED, id="throttled"),
    pytest.param(Fault(Kind.STATUS, status=429, code=""), FailureKind.THROTTLED, id="429"),
    pytest.param(Fault(Kind.STATUS, status=500, code="InternalError"), FailureKind.SERVER, id="500"),
    pytest.param(Fault(Kind.STATUS, status=503, code="ServiceUnavailable"), FailureKind.SERVER, id="503"),
    pytest.param(Fault(Kind.DROP), FailureKind.UNREACHABLE, id="dropped"),
    pytest.param(Fault(Kind.STALL), FailureKind.SLOW, id="stalled"),
]


@pytest.mark.parametrize(("fault", "kind"), TRANSIENT)
async def test_what_passes_is_only_a_retry(
    tier: ObjectTier, s3_proxy: FaultyS3, fault: Fault, kind: FailureKind
) -> None:
    s3_proxy.fault = replace(fault, times=1)
    assert await put(tier, 1) == {TierOutcome.DONE}
    assert tier.counters.retries[BucketOperation.PUT, kind] == 1
    s3_proxy.fault = replace(fault, times=1)
    assert await outcome(tier, 1) is TierOutcome.DONE
    assert tier.counters.retries[BucketOperation.GET, kind] == 1
    assert not tier.counters.failures


@pytest.mark.parametrize(("fault", "kind"), TRANSIENT)
async def test_what_stays_is_a_failure_with_its_reason_and_passes_when_it_is_over(
    tier: ObjectTier,
    s3_proxy: FaultyS3,
    clock: VirtualClock,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    kind: FailureKind,
) -> None:
    assert await put(tier, 1) == {TierOutcome.DONE}
    s3_proxy.fault = replace(fault)
    with caplog.at_level(logging.WARNING):
        (read,) = await get(tier, 1)
    assert (read.outcome, read.reason.partition(":")[0]) == (TierOutcome.FAILED, kind)
    assert tier.counters.failures[BucketOperation.GET, kind] == 1
    assert kind in caplog.text
    assert tier.holds([key(1)]) == [True]
    s3_proxy.fault = None
    clock.advance(PAUSE_SECONDS)
    assert await outcome(tier, 1) is TierOutcome.DONE
    assert await put(tier, 2) == {TierOutcome.DONE}


async def test_a_bucket_that_is_away_is_asked_no_more_until_its_pause_is_over(
    tier: ObjectTier, s3_proxy: FaultyS3, clock: VirtualClock
) -> None:
    await put(tier, 1)
    s3_proxy.fault = Fault(Kind.DROP)
    await get(tier, 1)
    before = len(s3_proxy.requests)
    (read,) = await get(tier, 1)
    assert (read.outcome, len(s3_proxy.requests)) == (TierOutcome.FAILED, before)
    assert "away" in read.reason
    assert await put(tier, 2) == {TierOutcome.FAILED}
    assert tier.counters.failures[BucketOperation.GET, FailureKind.CLOSED_GATE] == 1
    clock.advance(PAUSE_SECONDS)
    s3_proxy.fault = None
    assert await outcome(tier, 1) is TierOutcome.DONE


async def test_a_body_that_is_cut_is_read_again(tier: ObjectTier, s3_proxy: FaultyS3) -> None:
    await put(tier, 1)
    s3_proxy.fault = Fault(Kind.CUT, "GET", times=1)
    assert await outcome(tier, 1) is TierOutcome.DONE
    assert tier.counters.retries[BucketOperation.GET, FailureKind.UNREACHABLE] == 1


async def test_a_bit_that_changes_on_the_way_is_read_again_and_if_it_stays_is_corrupt(
    tier: ObjectTier, s3_proxy: FaultyS3
) -> None:
    await put(tier, 1)
    s3_proxy.fault = Fault(Kind.FLIP, "GET", times=1)
    assert await outcome(tier, 1) is TierOutcome.DONE
    s3_proxy.fault = Fault(Kind.FLIP, "GET")
    assert await outcome(tier, 1) is TierOutcome.CORRUPT
    assert tier.holds([key(1)]) == [False]


async def test_an_upload_whose_answer_is_lost_is_repeated_and_is_one_pack(
    tier: ObjectTier, s3_proxy: FaultyS3, settings: ObjectSettings
) -> None:
    s3_proxy.fault = Fault(Kind.LOSE, "PUT", times=1)
    assert await put(tier, 1) == {TierOutcome.DONE}
    assert len(packs(store_of(settings))) == 1


async def test_a_pack_that_may_be_there_after_a_failed_upload_is_deleted(
    tier: ObjectTier, s3_proxy: FaultyS3, settings: ObjectSettings, clock: VirtualClock
) -> None:
    s3_proxy.fault = Fault(Kind.LOSE, "PUT")
    assert await put(tier, 1) == {TierOutcome.FAILED}
    s3_proxy.fault = None
    assert len(packs(store_of(settings))) == 1
    clock.advance(PAUSE_SECONDS)
    assert await put(tier, 2) == {TierOutcome.DONE}
    await tier.remove([key(2)])
    await tier.swept()
    assert packs(store_of(settings)) == []


async def test_objects_that_vanish_are_misses(
    tier: ObjectTier, settings: ObjectSettings, caplog: pytest.LogCaptureFixture
) -> None:
    await put(tier, 1, 2)
    store = store_of(settings)
    await obstore.delete_async(store, packs(store))
    results = await get(tier, 1, 2)
    assert [result.outcome for result in results] == [TierOutcome.MISSING] * 2
    assert results[0].reason
    assert tier.holds([key(1), key(2)]) == [False, False]
    assert caplog.text.count("is gone") == 1
    assert await put(tier, 1) == {TierOutcome.DONE}
    assert await outcome(tier, 1) is TierOutcome.DONE


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_SECRET_ACCESS_KEY", "5ecret-but-wrong"), ("AWS_ACCESS_KEY_ID", "5ecret-nobody")],
)
async def test_wrong_credentials_are_a_start_that_fails_and_says_so(
    settings: ObjectSettings, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    tier = made(settings)
    with pytest.raises(StartFailed) as failed:
        await tier.open()
    assert "credentials" in failed.value.message
    assert settings.url in failed.value.message
    assert "5ecret" not in failed.value.message
    assert SECRET_KEY not in failed.value.message
    await tier.aclose()


async def test_a_bucket_that_is_not_there_is_a_start_that_fails(settings: ObjectSettings) -> None:
    with pytest.raises(StartFailed, match="bucket"):
        await made(replace(settings, url="s3://no-such-bucket")).open()


async def test_a_server_that_is_not_there_is_a_start_that_fails(settings: ObjectSettings) -> None:
    with pytest.raises(StartFailed, match="unreachable"):
        await made(replace(settings, endpoint="http://127.0.0.1:1")).open()


async def test_an_index_that_cannot_be_read_is_left_for_the_next_time(
    tier: ObjectTier, settings: ObjectSettings, s3_proxy: FaultyS3
) -> None:
    await put(tier, 1)
    await put(tier, 2)
    await tier.aclose()
    s3_proxy.fault = Fault(Kind.STATUS, f"GET /{BUCKET}/")  # the list is GET /bucket?
    again = made(settings, VirtualClock())
    await again.open()
    assert again.holds([key(1), key(2)]) == [False, False]
    s3_proxy.fault = None
    await again.aclose()
    last = made(settings)
    await last.open()
    assert last.holds([key(1), key(2)]) == [True, True]
    await last.aclose()


async def test_no_more_requests_at_once_than_allowed(
    tier: ObjectTier, settings: ObjectSettings, s3_proxy: FaultyS3
) -> None:
    for number in range(12):
        await put(tier, number)
    s3_proxy.most_at_once = 0
    results = await get(tier, *range(12))
    assert {result.outcome for result in results} == {TierOutcome.DONE}
    assert 1 < s3_proxy.most_at_once <= QUICK.reads_in_flight


async def test_a_server_that_is_killed_and_comes_back(
    settings: ObjectSettings, tmp_path: Path, clock: VirtualClock
) -> None:
    server = Seaweed(tmp_path)
    server.start()
    try:
        tier = made(replace(settings, endpoint=server.endpoint), clock)
        await tier.open()
        assert await put(tier, 1) == {TierOutcome.DONE}
        server.kill()
        (read,) = await get(tier, 1)
        assert (read.outcome, read.reason.partition(":")[0]) == (TierOutcome.FAILED, FailureKind.UNREACHABLE)
        assert await put(tier, 2) == {TierOutcome.FAILED}
        server.start()
        async with asyncio.timeout(BACK_SECONDS):  # it answers before all its parts have found each other
            while await outcome(tier, 1) is TierOutcome.FAILED:
                clock.advance(PAUSE_SECONDS)
        assert await outcome(tier, 1) is TierOutcome.DONE
        assert await put(tier, 2) == {TierOutcome.DONE}
        await tier.aclose()
    finally:
        server.kill()
