"""The whole store over a real S3 server that goes away and comes back, or whose answers change."""

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.exceptions import BaseError

from llmserve.buckets.connect import BucketAddress, connect
from llmserve.core.clock import VirtualClock
from llmserve.kvstore.tiers.base import TierOutcome
from llmserve.kvstore.tiers.object import ObjectSettings, ObjectTier, RequestLimits, RetryPolicy
from llmserve.rpc.wires.authority import Authority
from tests.support.certificates import make_host_certificate
from tests.support.faulty_s3 import Fault, FaultyS3, Kind
from tests.support.seaweed import BUCKET, Seaweed, credentials
from tests.support.tls_front import behind_tls
from tests.unit.kvstore.store.conftest import PART_BYTES, MakeWorld, World, chain, make_world

__all__ = ["make_world"]

ROOM = 256 * PART_BYTES
KEYS = chain("a", 6)
ALL = [0, 1, 2, 3, 4, 5]
QUICK = RequestLimits(
    reads_in_flight=4,
    uploads_in_flight=2,
    read=RetryPolicy(2, 0.5, 1.0, 0.001, 0.002),
    write=RetryPolicy(2, 1.0, 2.0, 0.001, 0.002),
)
LONG_SECONDS = 120.0  # longer than any gate is closed
AWAY = {
    "refuses": Fault(Kind.STATUS, status=503, code="ServiceUnavailable"),
    "throttles": Fault(Kind.STATUS, status=503, code="SlowDown"),
    "hangs-up": Fault(Kind.DROP),
    "says-nothing": Fault(Kind.STALL),
}

Bucket = Callable[[], World]


@pytest.fixture
def bucket(s3_proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch, make_world: MakeWorld) -> Bucket:
    """Stores over one and the same place in a bucket, one after the other."""
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)
    settings = ObjectSettings(
        f"s3://{BUCKET}/{uuid.uuid4().hex}",
        "one",
        64 << 20,
        endpoint=s3_proxy.endpoint,
        linger_seconds=0.002,
        limits=QUICK,
    )

    def make() -> World:
        clock = VirtualClock(1.0)
        tier = ObjectTier(settings, lambda: connect(settings.address), clock)
        return make_world(dram_blocks=16, tiers=[(tier, ROOM)], opens_later=True, clock=clock)

    return make


async def test_a_server_whose_certificate_is_of_an_authority_of_ones_own(
    s3_server: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority is named as for other programs, by SSL_CERT_FILE."""
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)
    ours, theirs = (Authority.make(name, 1.0) for name in ("ours", "theirs"))
    for name, authority in (("ours", ours), ("theirs", theirs)):
        authority.write(tmp_path / name)
    async with behind_tls(s3_server.port, *make_host_certificate(ours, tmp_path)) as port:
        address = BucketAddress(f"s3://{BUCKET}/{uuid.uuid4().hex}", f"https://127.0.0.1:{port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours" / "ca" / "ca.crt"))
        await connect(address).put_async("one", b"abc")
        answer = await connect(address).get_async("one")
        assert bytes(await answer.bytes_async()) == b"abc"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "theirs" / "ca" / "ca.crt"))
        with pytest.raises(BaseError, match=r"(?i)certificate|UnknownIssuer"):
            await connect(address).get_async("one")


async def down(world: World) -> None:
    await world.seen(KEYS)
    await world.drained()
    world.forget_dram(KEYS)


@pytest.mark.parametrize("fault", AWAY.values(), ids=AWAY)
async def test_a_bucket_goes_away_in_the_middle_and_comes_back(
    bucket: Bucket, s3_proxy: FaultyS3, fault: Fault
) -> None:
    world = bucket()
    await world.opened()
    await down(world)
    s3_proxy.fault = fault
    assert await world.loaded(KEYS) == [], "a miss"
    other = chain("b", 6)
    await world.seen(other)
    await world.drained()
    (tier,) = world.store.lower
    assert (tier.outcomes["write", TierOutcome.FAILED], tier.queued_bytes) == (6, 0)
    assert await world.loaded(other) == ALL, "DRAM works without it"
    s3_proxy.fault = None
    world.clock.advance(LONG_SECONDS)
    assert await world.loaded(KEYS) == ALL
    world.forget_dram(other)
    await world.seen(other)
    await world.drained()
    world.forget_dram(other)
    assert await world.loaded(other) == ALL


async def test_what_a_bucket_holds_is_used_after_a_restart_while_it_was_away(
    bucket: Bucket, s3_proxy: FaultyS3
) -> None:
    world = bucket()
    await world.opened()
    await down(world)
    await world.store.aclose()
    s3_proxy.fault = Fault(Kind.STATUS, status=503, code="ServiceUnavailable")
    later = bucket()
    await later.store.open()
    (tier,) = later.store.lower
    await later.until(lambda: "ServiceUnavailable" in tier.error)
    await later.seen(chain("b", 4))
    assert await later.loaded(KEYS) == []
    s3_proxy.fault = None
    await later.until(lambda: tier.is_open)
    assert await later.loaded(KEYS) == ALL
    assert len(tier.index) == 6


async def test_wrong_credentials_are_a_reason_and_right_ones_are_taken_later(
    bucket: Bucket, s3_proxy: FaultyS3
) -> None:
    s3_proxy.fault = Fault(Kind.STATUS, status=403, code="AccessDenied")
    world = bucket()
    await world.store.open()
    (tier,) = world.store.lower
    await world.until(lambda: "check the credentials" in tier.error)
    s3_proxy.fault = None
    await world.until(lambda: tier.is_open)
    await down(world)
    assert await world.loaded(KEYS) == ALL


async def test_a_bit_that_changes_on_the_way_is_a_miss(bucket: Bucket, s3_proxy: FaultyS3) -> None:
    world = bucket()
    await world.opened()
    await down(world)
    s3_proxy.fault = Fault(Kind.FLIP, method="GET")
    loads = await world.loaded(KEYS)  # checks what comes
    assert loads == ALL[: len(loads)]
    assert loads != ALL
    s3_proxy.fault = None
    await down(world)
    assert await world.loaded(KEYS) == ALL


async def test_a_server_that_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_world: MakeWorld
) -> None:
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)
    server = Seaweed(tmp_path)
    server.start()
    try:
        clock = VirtualClock(1.0)
        settings = ObjectSettings(
            f"s3://{BUCKET}/x", "one", 64 << 20, endpoint=server.endpoint, linger_seconds=0.002, limits=QUICK
        )
        tier = ObjectTier(settings, lambda: connect(settings.address), clock)
        world = make_world(dram_blocks=16, tiers=[(tier, ROOM)], opens_later=True, clock=clock)
        await world.opened()
        await down(world)
        server.kill()
        assert await world.loaded(KEYS) == []
        await asyncio.to_thread(server.start)
        clock.advance(LONG_SECONDS)
        loads = await world.loaded(KEYS)
        assert loads == ALL[: len(loads)]
        await down(world)
        assert await world.loaded(KEYS) == ALL
    finally:
        server.kill()
