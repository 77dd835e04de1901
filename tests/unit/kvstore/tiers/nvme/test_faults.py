"""A medium in trouble: each blob has its outcome, nothing is wrong, and it works again afterwards."""

import pytest

from llmserve.kvstore.tiers.base import ReadTarget, TierOutcome
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from tests.conformance.faulty_disk import EIO, ENOSPC, DiskFaults
from tests.conformance.nvme_files import stored
from tests.unit.kvstore.tiers.nvme.blobs import (
    KIB,
    blobs_of,
    get,
    key,
    make_tier,
    open_tier,
    put,
    there,
    try_put,
)


async def test_no_space_to_grow_is_full(tier: NvmeTier, faults: DiskFaults) -> None:
    await put(tier, range(3))
    faults.grow = ENOSPC
    results = await tier.write(blobs_of(range(3, 40)))
    outcomes = {result.outcome for result in results}
    assert outcomes == {TierOutcome.DONE, TierOutcome.FULL}, "what fits the file still goes there"
    assert "No space left" in results[-1].reason
    faults.grow = 0
    await put(tier, [39])
    assert await there(tier, [0, 1, 2, 39]) == [0, 1, 2, 39]


async def test_no_space_for_a_record_is_full(tier: NvmeTier, faults: DiskFaults) -> None:
    """Where the file system could not reserve room."""
    faults.write = ENOSPC
    result = await try_put(tier, 1)
    assert (result.outcome, tier.holds([key(1)])) == (TierOutcome.FULL, [False])
    faults.write = 0
    await put(tier, [1])
    assert await there(tier, [1]) == [1]


async def test_a_write_error_is_failed(tier: NvmeTier, faults: DiskFaults) -> None:
    await put(tier, [1])
    faults.write = EIO
    result = await try_put(tier, 2)
    assert (result.outcome, tier.holds([key(2)])) == (TierOutcome.FAILED, [False])
    assert "Input/output error" in result.reason
    faults.write = 0
    await put(tier, [2, 3])
    assert await there(tier, [1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("torn_after_bytes", [4 * KIB, 8 * KIB, 100 * KIB])
async def test_a_torn_write_is_not_found_later(
    settings: NvmeSettings, tier: NvmeTier, faults: DiskFaults, torn_after_bytes: int
) -> None:
    await put(tier, [1])
    faults.write, faults.torn_after_bytes = EIO, torn_after_bytes
    assert (await try_put(tier, 2)).outcome is TierOutcome.FAILED
    faults.torn_after_bytes = 0
    await tier.aclose()  # without a footer: writing it fails too
    again = await open_tier(settings)
    assert again.holds([key(1), key(2)]) == [True, False]
    assert await there(again, [1, 2]) == [1]
    await again.aclose()


async def test_one_bad_spot_is_one_miss(tier: NvmeTier, faults: DiskFaults, settings: NvmeSettings) -> None:
    await tier.write(blobs_of(range(3)))
    middle = next(place for place in stored(settings.directory) if place.key == key(1))
    faults.bad_offset = middle.data_at + 10
    targets = [ReadTarget(key(n), memoryview(bytearray(100 * KIB))) for n in range(3)]
    results = await tier.read(targets)
    assert [r.outcome for r in results] == [TierOutcome.DONE, TierOutcome.FAILED, TierOutcome.DONE]
    assert "Input/output error" in results[1].reason
    assert tier.holds([key(1)]) == [True], "it may be readable the next time"


async def test_a_head_that_cannot_be_written_is_no_blob(
    settings: NvmeSettings, tier: NvmeTier, faults: DiskFaults
) -> None:
    await put(tier, [1])
    faults.only, faults.write = "heads.kv", EIO
    assert (await try_put(tier, 2)).outcome is TierOutcome.FAILED
    faults.write = 0
    tier.space.check_integrity()
    await put(tier, [3])
    await tier.aclose()
    again = await open_tier(settings)
    assert again.holds([key(1), key(2), key(3)]) == [True, False, True]
    await again.aclose()


@pytest.mark.parametrize("torn_after_bytes", [1, 100, 300, 511])
async def test_a_torn_head_is_not_found_later(
    settings: NvmeSettings, tier: NvmeTier, faults: DiskFaults, torn_after_bytes: int
) -> None:
    await put(tier, [1])
    faults.only, faults.write, faults.torn_after_bytes = "heads.kv", EIO, torn_after_bytes
    assert (await try_put(tier, 2)).outcome is TierOutcome.FAILED
    faults.torn_after_bytes = 0
    await tier.aclose()
    again = await open_tier(settings)
    assert await there(again, [1, 2]) == [1]
    await again.aclose()


async def test_a_sync_that_fails_at_the_end_costs_no_blob(
    settings: NvmeSettings, tier: NvmeTier, faults: DiskFaults, caplog: pytest.LogCaptureFixture
) -> None:
    faults.sync = EIO
    await put(tier, range(25))
    await tier.aclose()
    assert "blobs may be lost by a power failure" in caplog.text
    again = await open_tier(settings)
    assert await there(again, range(25)) == [*range(25)]
    await again.aclose()


async def test_durable_is_done_only_when_the_medium_has_it(
    settings: NvmeSettings, faults: DiskFaults
) -> None:
    durable = NvmeSettings(settings.directory, settings.capacity_bytes, durable=True)
    tier = await open_tier(durable, faults)
    before = faults.syncs
    await put(tier, [1])
    assert faults.syncs == before + 2, "data, then heads"
    faults.sync = EIO
    assert (await try_put(tier, 2)).outcome is TierOutcome.FAILED
    assert tier.holds([key(1), key(2)]) == [True, False]
    await tier.aclose()


async def test_the_directory_goes_away(settings: NvmeSettings, tier: NvmeTier) -> None:
    """The open files still work; the next start finds nothing."""
    await put(tier, range(3))
    for path in settings.directory.iterdir():
        path.unlink()
    settings.directory.rmdir()
    await put(tier, [3])
    assert await there(tier, range(4)) == [*range(4)]
    await tier.remove([key(n) for n in range(3)])
    await tier.aclose()
    again = await open_tier(settings)
    assert await there(again, range(4)) == []
    await again.aclose()


async def test_a_file_that_shrinks_is_a_miss(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(3))
    with (settings.directory / "data.kv").open("r+b") as file:
        file.truncate(120 * KIB)
    assert [(await get(tier, n)).outcome for n in range(3)] == [
        TierOutcome.DONE,
        TierOutcome.CORRUPT,
        TierOutcome.CORRUPT,
    ]


async def test_heads_that_cannot_be_erased_are_logged_once(
    tier: NvmeTier, faults: DiskFaults, caplog: pytest.LogCaptureFixture
) -> None:
    await put(tier, range(12))
    faults.all_fail(ENOSPC)
    for number in range(4):
        await tier.remove([key(number)])
    assert [record.message for record in caplog.records if "may be back" in record.message] == [
        "removed blobs may be back after a restart: [Errno 28] No space left on device"
    ]
    faults.all_fail(0)
    await tier.remove([key(4)])
    faults.all_fail(ENOSPC)
    await tier.remove([key(5)])
    assert len([record for record in caplog.records if "may be back" in record.message]) == 2


async def test_a_blob_that_comes_back_is_right_or_a_miss(
    settings: NvmeSettings, tier: NvmeTier, faults: DiskFaults
) -> None:
    """Its head could not be erased, and another blob has its pages now: the newer one counts."""
    await put(tier, [1, 2])
    faults.only, faults.write = "heads.kv", EIO
    await tier.remove([key(1), key(2)])
    faults.write = 0
    await put(tier, [3])  # in the pages of 1, with the slot of 2
    await tier.aclose()
    again = await open_tier(settings)
    again.space.check_integrity()
    found = await there(again, [1, 2, 3])
    assert found == [3]
    await again.aclose()
    last = await open_tier(settings)
    assert await there(last, [1, 2, 3]) == found
    await last.aclose()


async def test_a_closed_tier_answers(settings: NvmeSettings) -> None:
    tier = make_tier(settings)
    assert (await try_put(tier, 1)).outcome is TierOutcome.FAILED
    assert (await get(tier, 1)).outcome is TierOutcome.FAILED
    await tier.remove([key(1)])
    await tier.aclose()
