"""Blobs of known bytes, and what a tier says to them."""

from collections.abc import Sequence

import numpy as np

from llmserve.kvstore.tiers.base import Blob, BlobKey, BlobResult, ReadResult, ReadTarget, Tier, TierOutcome
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from tests.conformance.faulty_disk import DiskFaults, FaultyDisk

KIB = 1 << 10


def key(number: int) -> BlobKey:
    return BlobKey(b"key-%027d" % number)


def data_of(number: int, size: int) -> bytes:
    return np.random.default_rng(number).bytes(size)


def blobs_of(numbers: Sequence[int], size: int = 100 * KIB) -> list[Blob]:
    return [Blob(key(n), b"header", memoryview(data_of(n, size))) for n in numbers]


def make_tier(settings: NvmeSettings, faults: DiskFaults | None = None) -> NvmeTier:
    return NvmeTier(settings, lambda where: FaultyDisk(where, faults or DiskFaults(), is_direct=True))


async def open_tier(settings: NvmeSettings, faults: DiskFaults | None = None) -> NvmeTier:
    tier = make_tier(settings, faults)
    await tier.open()
    return tier


async def put(tier: Tier, numbers: Sequence[int], size: int = 100 * KIB) -> None:
    """One call each."""
    for number in numbers:
        (result,) = await tier.write(blobs_of([number], size))
        assert result.outcome is TierOutcome.DONE, result


async def try_put(tier: Tier, number: int, size: int = 100 * KIB) -> BlobResult:
    (result,) = await tier.write(blobs_of([number], size))
    return result


async def get(tier: Tier, number: int, size: int = 100 * KIB) -> ReadResult:
    """What is DONE is checked to be what was written."""
    buffer = bytearray(size)
    (result,) = await tier.read([ReadTarget(key(number), memoryview(buffer))])
    if result.outcome is TierOutcome.DONE:
        assert (result.header, result.length_bytes) == (b"header", size)
        assert buffer == data_of(number, size)
    return result


async def there(tier: Tier, numbers: Sequence[int], size: int = 100 * KIB) -> list[int]:
    """Those that are read as written; all others are misses."""
    outcomes = [(number, (await get(tier, number, size)).outcome) for number in numbers]
    assert {outcome for _, outcome in outcomes} <= {
        TierOutcome.DONE,
        TierOutcome.MISSING,
        TierOutcome.CORRUPT,
    }
    return [number for number, outcome in outcomes if outcome is TierOutcome.DONE]
