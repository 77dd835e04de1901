"""A medium in trouble: each blob has its outcome, nothing is wrong, and it works again afterwards."""

import pytest

from llmserve.kvstore.tiers.base import ReadTarget, TierOutcome
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from tests.conformance.faulty_disk import EIO, ENOSPC, DiskFaults
from tests.conformance.segment_files import segment_paths, stored
from tests.unit.kvstore.nvme.blobs import (
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


async def test_no_space_for_a_segment_is_full(tier: NvmeTier, faults: DiskFaults) -> None:
    await put(tier, range(3))
    faults.create = ENOSPC
    results = await tier.write(blobs_of(range(3, 40)))
    outcomes = {result.outcome for result in results}
    assert outcomes == {TierOutcome.DONE, TierOutcome.FULL}, "what fits the open segment still goes there"
    assert "No space left" in results[-1].reason
    faults.create = 0
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


async def test_sealing_that_fails_costs_no_blob(
    settings: NvmeSettings, tier: NvmeTier, faults: DiskFaults
) -> None:
    faults.sync = EIO
    await put(tier, range(25))
    assert await there(tier, range(25)) == [*range(25)]
    await tier.aclose()
    again = await open_tier(settings)
    assert await there(again, range(25)) == [*range(25)]
    await again.aclose()


async def test_durable_is_done_only_when_the_medium_has_it(
    settings: NvmeSettings, faults: DiskFaults
) -> None:
    durable = NvmeSettings(settings.directory, settings.capacity_bytes, settings.segment_bytes, durable=True)
    tier = await open_tier(durable, faults)
    await put(tier, [1])
    assert faults.syncs == 1
    faults.sync = EIO
    assert (await try_put(tier, 2)).outcome is TierOutcome.FAILED
    assert tier.holds([key(1), key(2)]) == [True, False]
    await tier.aclose()


async def test_a_segment_that_cannot_be_opened_is_given_up(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(25))
    await tier.aclose()
    path, *others = segment_paths(settings.directory)
    lost = {place.key for place in stored(settings.directory) if place.path == path}
    path.unlink()
    path.mkdir()
    again = await open_tier(settings)
    assert len(others) >= 2
    assert await there(again, range(25)) == [n for n in range(25) if key(n) not in lost]
    await again.aclose()


async def test_a_disk_that_cannot_remove_keeps_its_bound(tier: NvmeTier, faults: DiskFaults) -> None:
    faults.remove = EIO
    await put(tier, range(40))
    await tier.remove([key(n) for n in range(40)])
    for number in range(40, 120):
        await try_put(tier, number)
        assert tier.usage().used_bytes <= tier.usage().capacity_bytes


async def test_the_directory_goes_away(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(3))
    for path in settings.directory.iterdir():
        path.unlink()
    settings.directory.rmdir()
    results = await tier.write(blobs_of(range(3, 40)))
    assert results[-1].outcome is TierOutcome.FAILED
    assert "No such file" in results[-1].reason
    assert set(await there(tier, range(3))) <= {0, 1, 2}
    await tier.remove([key(n) for n in range(3)])
    await tier.aclose()
    again = await open_tier(settings)
    assert await there(again, range(3)) == []
    await again.aclose()


async def test_a_file_that_shrinks_is_a_miss(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(3))
    (path,) = segment_paths(settings.directory)
    with path.open("r+b") as file:
        file.truncate(120 * KIB)
    assert [(await get(tier, n)).outcome for n in range(3)] == [
        TierOutcome.DONE,
        TierOutcome.CORRUPT,
        TierOutcome.CORRUPT,
    ]


async def test_graves_that_cannot_be_written_are_logged_once(
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


async def test_totals_tell_what_happened(tier: NvmeTier, faults: DiskFaults) -> None:
    await put(tier, [1, 2])
    await get(tier, 1)
    await get(tier, 7)
    faults.write = ENOSPC
    await try_put(tier, 3)
    totals = tier.totals
    assert (totals.written[TierOutcome.DONE], totals.written[TierOutcome.FULL]) == (2, 1)
    assert (totals.read[TierOutcome.DONE], totals.read[TierOutcome.MISSING]) == (1, 1)
    assert (totals.written_bytes, totals.read_bytes) == (200 * KIB, 100 * KIB)


async def test_a_closed_tier_answers(settings: NvmeSettings) -> None:
    tier = make_tier(settings)
    assert (await try_put(tier, 1)).outcome is TierOutcome.FAILED
    assert (await get(tier, 1)).outcome is TierOutcome.FAILED
    await tier.remove([key(1)])
    await tier.aclose()
