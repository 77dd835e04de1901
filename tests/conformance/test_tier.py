"""What every tier below DRAM promises (llmserve/kvstore/tiers/base.py), on each of them and on the fake."""

import asyncio
import mmap
import random
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from llmserve.core.errors import StartFailed
from llmserve.kvstore.tiers.base import Blob, BlobKey, ReadResult, ReadTarget, Tier, TierOutcome
from tests.conformance.tier_kits import KITS, TierKit

KIB = 1 << 10
SIZES = (1, 511, 4095, 4096, 4097, 100 * KIB, 300 * KIB + 13, 3 << 20)
PATIENCE_SECONDS = 20.0
UNTOUCHED = 0xA5


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest) -> TierKit:
    return KITS[request.param](request)


@pytest.fixture
async def tier(kit: TierKit) -> AsyncIterator[Tier]:
    tier = kit.make()
    await tier.open()
    yield tier
    await tier.aclose()


def key(number: int) -> BlobKey:
    return BlobKey(b"key-%027d" % number)


def data_of(number: int, size: int) -> bytes:
    return np.random.default_rng(number).bytes(size)


def blob(number: int, size: int = 64 * KIB, header: bytes = b"header") -> Blob:
    return Blob(key(number), header, memoryview(data_of(number, size)))


def target(number: int, room: int = 64 * KIB) -> ReadTarget:
    return ReadTarget(key(number), memoryview(bytearray([UNTOUCHED]) * room))


def aligned(size: int, shift: int = 0) -> memoryview:
    """Memory that begins `shift` bytes after a page's start."""
    return memoryview(mmap.mmap(-1, size + shift))[shift:]


async def put(tier: Tier, *blobs: Blob) -> None:
    results = await tier.write(blobs)
    assert [result.outcome for result in results] == [TierOutcome.DONE] * len(blobs), results


async def get(tier: Tier, number: int, room: int = 64 * KIB) -> ReadResult:
    (result,) = await tier.read([target(number, room)])
    return result


async def expect(tier: Tier, blobs: Sequence[Blob]) -> None:
    """They are there, as they were written."""
    targets = [ReadTarget(blob.key, aligned(blob.data.nbytes)) for blob in blobs]
    for wanted, at, result in zip(blobs, targets, await tier.read(targets), strict=True):
        assert result == ReadResult(TierOutcome.DONE, header=wanted.header, length_bytes=wanted.data.nbytes)
        assert at.buffer == wanted.data


# -- what was written is read


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_written_is_read(tier: Tier, size: int) -> None:
    await put(tier, blob(1, size))
    assert (tier.holds([key(1)]), tier.sizes([key(1)])) == ([True], [size])
    await expect(tier, [blob(1, size)])


async def test_a_batch_is_answered_in_its_order(tier: Tier) -> None:
    blobs = [blob(number, size) for number, size in enumerate(SIZES)]
    await put(tier, *blobs)
    random.Random(3).shuffle(blobs)
    await expect(tier, blobs)
    assert tier.sizes([b.key for b in blobs]) == [b.data.nbytes for b in blobs]


async def test_an_empty_batch_is_nothing(tier: Tier) -> None:
    await tier.remove([])
    assert (await tier.write([]), await tier.read([]), tier.holds([]), tier.sizes([])) == ([], [], [], [])


@pytest.mark.parametrize("header", [b"", b"\0", bytes(range(256)) * 4])
@pytest.mark.parametrize("name", [b"k", b"\0" * 32, bytes(range(64))])
async def test_headers_and_keys_of_every_length(tier: Tier, header: bytes, name: bytes) -> None:
    written = Blob(BlobKey(name), header, memoryview(b"data"))
    await put(tier, written)
    await expect(tier, [written])


async def test_a_key_that_begins_like_another_is_another(tier: Tier) -> None:
    short, long = (Blob(BlobKey(b"k" * n), b"", memoryview(b"%d" % n)) for n in (31, 32))
    await put(tier, short)
    assert tier.holds([long.key]) == [False]
    await put(tier, long)
    await expect(tier, [short, long])


@pytest.mark.parametrize("shift", [0, 1, 512])
@pytest.mark.parametrize("size", [8 * KIB, 8 * KIB + 5])
async def test_memory_need_not_be_aligned(tier: Tier, size: int, shift: int) -> None:
    source, sink = aligned(size, shift), aligned(size + 16, shift)
    source[:], sink[:] = data_of(1, size), bytes([UNTOUCHED]) * (size + 16)
    await put(tier, Blob(key(1), b"h", source))
    (result,) = await tier.read([ReadTarget(key(1), sink[:size])])
    assert result.outcome is TierOutcome.DONE, result
    assert sink[:size] == source
    assert bytes(sink[size:]) == bytes([UNTOUCHED]) * 16


async def test_a_buffer_may_be_longer_than_the_blob(tier: Tier) -> None:
    await put(tier, blob(1, 5000))
    at = target(1, 20_000)
    (result,) = await tier.read([at])
    assert result.length_bytes == 5000
    assert at.buffer[:5000] == blob(1, 5000).data


async def test_a_buffer_too_short_is_a_failure_of_its_own(tier: Tier) -> None:
    await put(tier, blob(1, 5000), blob(2))
    memory = bytearray([UNTOUCHED]) * 8192
    short = ReadTarget(key(1), memoryview(memory)[:4999])
    results = await tier.read([short, target(2)])
    assert [result.outcome for result in results] == [TierOutcome.FAILED, TierOutcome.DONE]
    assert results[0].reason
    assert memory[4999:] == bytes([UNTOUCHED]) * (8192 - 4999)
    await expect(tier, [blob(1, 5000)])


async def test_the_writer_may_reuse_its_memory_afterwards(tier: Tier) -> None:
    memory = aligned(64 * KIB)
    memory[:] = blob(1).data
    await put(tier, Blob(key(1), b"header", memory))
    memory[:] = bytes(64 * KIB)
    await expect(tier, [blob(1)])


# -- what is there, is there once


async def test_what_is_not_there_is_missing(tier: Tier) -> None:
    await put(tier, blob(1))
    results = await tier.read([target(2), target(1)])
    assert [result.outcome for result in results] == [TierOutcome.MISSING, TierOutcome.DONE]
    assert results[0].reason
    assert (tier.holds([key(2), key(1)]), tier.sizes([key(2)])) == ([False, True], [0])


async def test_a_key_is_never_overwritten(tier: Tier) -> None:
    await put(tier, blob(1))
    await put(tier, Blob(key(1), b"other", memoryview(b"other")))
    await expect(tier, [blob(1)])
    assert tier.usage().blobs == 1


async def test_a_key_twice_in_a_batch_and_in_two_calls_at_once(tier: Tier) -> None:
    await asyncio.gather(put(tier, blob(1), blob(1)), put(tier, blob(1), blob(2)))
    await expect(tier, [blob(1), blob(2)])
    assert (tier.usage().blobs, tier.usage().held_bytes) == (2, 2 * 64 * KIB)


async def test_one_key_into_two_buffers(tier: Tier) -> None:
    await put(tier, blob(1))
    await expect(tier, [blob(1), blob(1)])


async def test_what_is_removed_is_missing_and_can_be_written_again(tier: Tier) -> None:
    await put(tier, blob(1), blob(2))
    await tier.remove([key(1), key(7)])
    assert (await get(tier, 1)).outcome is TierOutcome.MISSING
    assert tier.holds([key(1), key(2)]) == [False, True]
    assert (tier.usage().blobs, tier.usage().held_bytes) == (1, 64 * KIB)
    await put(tier, blob(1))
    await expect(tier, [blob(1), blob(2)])


async def test_removing_twice_changes_nothing_more(tier: Tier) -> None:
    await put(tier, blob(1), blob(2))
    await asyncio.gather(tier.remove([key(1), key(1)]), tier.remove([key(1)]))
    assert (tier.usage().blobs, tier.usage().held_bytes) == (1, 64 * KIB)


# -- room


async def fill(tier: Tier, size: int, first: int = 0) -> list[Blob]:
    """Writes until it is full; those that are there."""
    written: list[Blob] = []
    for number in range(first, first + 1 + 2 * tier.usage().capacity_bytes // size):
        (result,) = await tier.write([blob(number, size)])
        if result.outcome is not TierOutcome.DONE:
            assert result.outcome is TierOutcome.FULL, result
            assert result.reason
            return written
        written.append(blob(number, size))
    raise AssertionError("the tier is never full")


async def test_a_full_tier_says_so_and_keeps_what_it_has(tier: Tier, kit: TierKit) -> None:
    written = await fill(tier, 256 * KIB)
    usage = tier.usage()
    assert usage.capacity_bytes == kit.capacity_bytes
    assert usage.held_bytes == len(written) * 256 * KIB
    assert usage.held_bytes <= usage.used_bytes <= usage.capacity_bytes
    assert usage.held_bytes > usage.capacity_bytes / 2
    await expect(tier, written)


async def test_a_blob_larger_than_the_tier_is_refused(tier: Tier, kit: TierKit) -> None:
    too_large = Blob(key(1), b"", memoryview(bytes(kit.capacity_bytes + 1)))
    results = await tier.write([too_large, blob(2)])
    assert [result.outcome for result in results] == [TierOutcome.FULL, TierOutcome.DONE]
    assert tier.holds([key(1)]) == [False]


@pytest.mark.parametrize("every", [1, 2, 3])
async def test_room_comes_back(tier: Tier, every: int) -> None:
    """Also when what is removed lies between what stays; used never passes the capacity."""
    written = await fill(tier, 256 * KIB)
    gone, kept = written[::every], [b for i, b in enumerate(written) if i % every]
    await tier.remove([b.key for b in gone])
    again = [blob(10_000 + number, 256 * KIB) for number in range(max(1, len(gone) // 2))]
    async with asyncio.timeout(PATIENCE_SECONDS):
        for one in again:
            await put_when_there_is_room(tier, one)
            assert tier.usage().used_bytes <= tier.usage().capacity_bytes
    await expect(tier, [*kept, *again])


async def put_when_there_is_room(tier: Tier, one: Blob) -> None:
    (result,) = await tier.write([one])
    if result.outcome is TierOutcome.FULL:
        await asyncio.sleep(0.01)
        await put_when_there_is_room(tier, one)
    else:
        assert result.outcome is TierOutcome.DONE, result


# -- calls at once


async def test_a_model_of_many_calls_at_once(tier: Tier) -> None:
    """Each worker has keys of its own, so that it knows what must be there."""

    async def work(worker: int) -> None:
        chance, there = random.Random(worker), set[int]()
        for _ in range(40):
            number = 100 * worker + chance.randrange(5)
            await step(chance.choice(("write", "read", "remove")), number, there)

    async def step(what: str, number: int, there: set[int]) -> None:
        one = blob(number, 20_000 + number)
        if what == "write":
            await put(tier, one)
            there.add(number)
        elif what == "remove":
            await tier.remove([one.key])
            there.discard(number)
        elif number in there:
            await expect(tier, [one])
        else:
            assert (await get(tier, number)).outcome is TierOutcome.MISSING
        assert tier.holds([one.key]) == [number in there]

    await asyncio.gather(*(work(worker) for worker in range(6)))


async def test_the_loop_runs_while_a_call_waits(tier: Tier) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    await put(tier, blob(1, 3 << 20))
    await get(tier, 1, 3 << 20)
    counter.cancel()
    assert turns >= 2


async def test_a_write_that_is_cancelled_has_let_go_of_its_memory(tier: Tier) -> None:
    memory = [aligned(256 * KIB) for _ in range(8)]
    for number, one in enumerate(memory):
        one[:] = blob(number, 256 * KIB).data
    write = asyncio.create_task(tier.write([Blob(key(n), b"header", m) for n, m in enumerate(memory)]))
    await asyncio.sleep(0)
    write.cancel()
    await asyncio.wait([write])
    for one in memory:
        one[:] = bytes(256 * KIB)
    there = [number for number in range(8) if tier.holds([key(number)])[0]]
    await expect(tier, [blob(number, 256 * KIB) for number in there])
    await put(tier, *(blob(number, 256 * KIB) for number in range(8)))


async def test_a_read_that_is_cancelled_has_let_go_of_its_memory(tier: Tier) -> None:
    await put(tier, blob(1, 3 << 20))
    buffer = aligned(3 << 20)
    read = asyncio.create_task(tier.read([ReadTarget(key(1), buffer)]))
    await asyncio.sleep(0)
    read.cancel()
    await asyncio.wait([read])
    buffer[:] = bytes([UNTOUCHED]) * len(buffer)
    await expect(tier, [blob(1, 3 << 20)])
    assert bytes(buffer) == bytes([UNTOUCHED]) * len(buffer)


# -- trouble


async def test_a_changed_bit_is_never_read(tier: Tier, kit: TierKit) -> None:
    await put(tier, *(blob(number) for number in range(3)))
    kit.damage(key(1))
    results = await tier.read([target(0), target(1), target(2)])
    assert [result.outcome for result in results] == [TierOutcome.DONE, TierOutcome.CORRUPT, TierOutcome.DONE]
    assert results[1].reason
    assert (tier.holds([key(1)]), tier.sizes([key(1)])) == ([False], [0])
    assert (await get(tier, 1)).outcome is TierOutcome.MISSING
    await put(tier, blob(1))
    await expect(tier, [blob(1)])


async def test_a_medium_that_fails_is_a_reason_and_no_error(tier: Tier, kit: TierKit) -> None:
    await put(tier, blob(1))
    with kit.failing():
        (written,) = await tier.write([blob(2)])
        (read,) = await tier.read([target(1)])
        await tier.remove([key(9)])
    assert (written.outcome, read.outcome) == (TierOutcome.FAILED, TierOutcome.FAILED)
    assert written.reason
    assert read.reason
    assert tier.holds([key(1), key(2)]) == [True, False]
    await expect(tier, [blob(1)])
    await put(tier, blob(2))
    await expect(tier, [blob(2)])


# -- the next process


async def reopened(tier: Tier, kit: TierKit) -> Tier:
    await tier.aclose()
    again = kit.make()
    await again.open()
    return again


async def test_what_was_done_is_there_for_the_next(tier: Tier, kit: TierKit) -> None:
    blobs = [blob(number, size) for number, size in enumerate(SIZES)]
    await put(tier, *blobs)
    held = tier.usage().held_bytes
    again = await reopened(tier, kit)
    assert again.sizes([b.key for b in blobs]) == list(SIZES)
    assert (again.usage().blobs, again.usage().held_bytes) == (len(blobs), held)
    await expect(again, blobs)
    await put(again, blob(99))
    last = await reopened(again, kit)
    await expect(last, [*blobs, blob(99)])
    await last.aclose()


async def test_what_is_held_is_listed(tier: Tier, kit: TierKit) -> None:
    assert tier.held() == []
    blobs = [blob(number, size) for number, size in enumerate(SIZES)]
    await put(tier, *blobs)
    await tier.remove([key(2)])
    expected = sorted((key(number), size) for number, size in enumerate(SIZES) if number != 2)
    assert sorted(tier.held()) == expected
    assert sum(size for _, size in tier.held()) == tier.usage().held_bytes
    again = await reopened(tier, kit)
    assert sorted(again.held()) == expected
    await again.aclose()


async def test_what_was_removed_does_not_come_back(tier: Tier, kit: TierKit) -> None:
    await put(tier, *(blob(number) for number in range(4)))
    await tier.remove([key(0), key(2)])
    again = await reopened(tier, kit)
    assert again.holds([key(n) for n in range(4)]) == [False, True, False, True]
    await put(again, blob(2))
    last = await reopened(again, kit)
    await expect(last, [blob(1), blob(2), blob(3)])
    assert last.usage().blobs == 3
    await last.aclose()


async def test_a_removal_that_is_settled_is_there_for_the_next(tier: Tier, kit: TierKit) -> None:
    """The medium failed when it was made. It is made up for, unless the room was taken meanwhile."""
    await put(tier, *(blob(number) for number in range(4)))
    with kit.failing():
        await tier.remove([key(0), key(2)])
        assert (await tier.settle_removals()).outcome is TierOutcome.FAILED
    await put(tier, blob(7))
    assert (await tier.settle_removals()).outcome is TierOutcome.DONE
    await expect(tier, [blob(1), blob(3), blob(7)])
    again = await reopened(tier, kit)
    assert again.holds([key(n) for n in range(4)]) == [False, True, False, True]
    await expect(again, [blob(1), blob(3), blob(7)])
    await again.aclose()


async def test_damage_while_nobody_looks_is_a_miss(tier: Tier, kit: TierKit) -> None:
    await put(tier, *(blob(number) for number in range(3)))
    await tier.aclose()
    kit.damage(key(1))
    again = kit.make()
    await again.open()
    assert (await get(again, 1)).outcome in (TierOutcome.CORRUPT, TierOutcome.MISSING)
    await expect(again, [blob(0), blob(2)])
    await again.aclose()


async def test_what_is_in_flight_ends_before_the_tier_closes(tier: Tier, kit: TierKit) -> None:
    write = asyncio.create_task(tier.write([blob(number, 256 * KIB) for number in range(8)]))
    await asyncio.sleep(0)
    again = await reopened(tier, kit)
    done = [number for number, result in enumerate(await write) if result.outcome is TierOutcome.DONE]
    await expect(again, [blob(number, 256 * KIB) for number in done])
    await again.aclose()


async def test_closing_is_idempotent(tier: Tier) -> None:
    await tier.aclose()
    await tier.aclose()


async def test_a_medium_that_cannot_be_used_fails_the_start(kit: TierKit) -> None:
    tier = kit.make_unusable()
    with pytest.raises(StartFailed) as failed:
        await tier.open()
    assert failed.value.message
    await tier.aclose()
    await tier.aclose()


async def test_a_tier_that_was_never_opened_can_be_closed(kit: TierKit) -> None:
    await kit.make().aclose()
