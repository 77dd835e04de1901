"""Room comes back by copying what lives, and nothing else does."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmserve.kvstore.tiers.base import BlobKey, TierOutcome
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from llmserve.kvstore.tiers.nvme.blob_io import Record
from llmserve.kvstore.tiers.nvme.compactor import Compactor
from llmserve.kvstore.tiers.nvme.disk import LocalDisk
from llmserve.kvstore.tiers.nvme.layout import Demand, Entry, Grave
from llmserve.kvstore.tiers.nvme.segments import Index, Place, Segment, Segments
from tests.conformance.faulty_disk import EIO, DiskFaults
from tests.conformance.segment_files import flip, segment_paths, stored
from tests.unit.kvstore.nvme.blobs import blobs_of, key, open_tier, put, there, try_put

MIB = 1 << 20
PER_SEGMENT = 9  # blobs of 100 KiB in 1 MiB
FULL = 7 * PER_SEGMENT  # one segment is kept back


def segment(stamp: int, live: int, room: int = 100, *, sealed: bool = True) -> Segment:
    file = LocalDisk.__new__(LocalDisk)
    return Segment(stamp, file, room, live_blobs=live, live_bytes=live, is_sealed=sealed)  # type: ignore[arg-type]


# -- which of them (pure)


def test_the_one_with_the_smallest_share_goes_first() -> None:
    segments = Segments(1000, 100)
    for stamp, live in enumerate((70, 30, 50)):
        segments.add(segment(stamp, live))
    chosen = segments.emptiest(0.4)
    assert chosen
    assert chosen.stamp == 1
    assert segments.emptiest(0.3) is None


def test_the_open_one_and_those_that_are_stuck_stay() -> None:
    segments = Segments(1000, 100)
    stuck = segment(1, 0)
    stuck.is_stuck = True
    for one in (segment(0, 0, sealed=False), stuck):
        segments.add(one)
    assert segments.emptiest(1.0) is None


def test_a_dead_one_goes_without_need() -> None:
    segments = Segments(1000, 100)
    segments.add(segment(0, 0))
    assert segments.emptiest(0.0) is not None


def test_writers_leave_the_reserve_to_upkeep() -> None:
    segments = Segments(300, 100)
    segments.add(segment(0, 1))
    assert segments.has_room_for(100, upkeep=False)
    segments.add(segment(1, 1))
    assert not segments.has_room_for(100, upkeep=False)
    assert segments.has_room_for(100, upkeep=True)
    segments.add(segment(2, 1))
    assert not segments.has_room_for(100, upkeep=True)


def test_a_large_record_gets_a_segment_of_its_size() -> None:
    segments = Segments(1 << 30, MIB)
    demand = Demand(5 * MIB, entries=1)
    one = segment(0, 0, room=segments.size_of_next(demand), sealed=False)
    assert one.fits(demand)
    assert segments.size_of_next(Demand(4096, entries=1)) == MIB


def test_graves_are_needed_while_their_segment_is_there() -> None:
    segments = Segments(1000, 100)
    here, leaving = segment(1, 1), segment(2, 1)
    segments.add(here)
    segments.add(leaving)
    graves = [Grave(1, 0), Grave(2, 0), Grave(3, 0)]
    assert segments.needed_graves(graves) == graves[:2]
    assert segments.needed_graves(graves, leaving) == graves[:1]


def test_the_index_counts_what_lives() -> None:
    index, one, other = Index(), segment(1, 0), segment(2, 0)
    index.put(key(1), Place(one, 0, 5000))
    index.put(key(2), Place(one, 12288, 1))
    index.put(key(1), Place(other, 0, 5000))
    assert (one.live_blobs, one.live_bytes, other.live_blobs, other.live_bytes) == (1, 8192, 1, 12288)
    assert (len(index), index.held_bytes) == (2, 5001)
    index.take(key(1))
    index.take(key(2))
    assert (one.live_bytes, other.live_bytes, index.held_bytes) == (0, 0, 0)


# -- the tier


async def quiet(tier: NvmeTier) -> None:
    """Until all is sealed and nothing is copied in the background."""
    parts = tier._parts
    assert parts
    await asyncio.gather(*parts.appender._sealing)
    if parts.compactor._background:
        await parts.compactor._background


async def test_what_is_dead_goes_at_once(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(3 * PER_SEGMENT))
    before = len(segment_paths(settings.directory))
    await quiet(tier)
    await tier.remove([key(n) for n in range(2 * PER_SEGMENT)])
    await quiet(tier)
    assert before - len(segment_paths(settings.directory)) == 2
    assert tier.totals.copied_bytes == 0


async def test_what_died_while_it_was_open_goes_when_it_is_sealed(tier: NvmeTier) -> None:
    await put(tier, range(PER_SEGMENT))
    await tier.remove([key(n) for n in range(PER_SEGMENT)])
    await put(tier, range(100, 110))
    await quiet(tier)
    assert tier.totals.dropped_segments == 1


async def test_what_is_dead_at_the_start_goes(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(3))
    await tier.remove([key(n) for n in range(3)])
    await tier.aclose()
    assert segment_paths(settings.directory)
    again = await open_tier(settings)
    await quiet(again)
    assert (segment_paths(settings.directory), again.usage().used_bytes) == ([], 0)
    await again.aclose()


async def test_a_full_tier_copies_to_make_room(tier: NvmeTier) -> None:
    numbers = list(range(FULL))
    await put(tier, numbers)
    await tier.remove([key(n) for n in numbers if n % 3 == 0])
    kept = [n for n in numbers if n % 3]
    more = list(range(1000, 1000 + PER_SEGMENT))
    await put(tier, more)
    assert tier.totals.copied_bytes > 0
    assert await there(tier, kept + more) == kept + more
    assert tier.usage().used_bytes <= tier.usage().capacity_bytes


async def test_churn_for_long_keeps_every_promise(settings: NvmeSettings, tier: NvmeTier) -> None:
    """Ten times the capacity, each blob removed 40 blobs later: never FULL, never over, and it restarts."""
    for number in range(800):
        assert (await try_put(tier, number)).outcome is TierOutcome.DONE
        if number >= 40:
            await tier.remove([key(number - 40)])
        assert tier.usage().used_bytes <= tier.usage().capacity_bytes
    await tier.aclose()
    again = await open_tier(settings)
    assert again.usage().blobs == 40
    assert await there(again, range(800)) == [*range(760, 800)]
    await again.aclose()


async def test_graves_outlive_the_segment_they_are_in(settings: NvmeSettings, tier: NvmeTier) -> None:
    """What is removed stays so, when the segment with its grave is copied and dropped before its own."""
    await put(tier, range(PER_SEGMENT))  # the first segment
    await put(tier, [100])
    await tier.remove([key(0)])  # its grave is in the second
    await put(tier, range(101, 108))
    await put(tier, range(108, 113))  # the second is sealed
    dropped = tier.totals.dropped_segments
    await tier.remove([key(n) for n in range(100, 109)])
    await quiet(tier)
    await tier.aclose()
    assert tier.totals.dropped_segments > dropped
    again = await open_tier(settings)
    assert again.holds([key(0)]) == [False]
    assert await there(again, range(1, PER_SEGMENT)) == [*range(1, PER_SEGMENT)]
    await again.aclose()


async def test_a_crash_between_copying_and_dropping(
    settings: NvmeSettings, tier: NvmeTier, tmp_path: Path
) -> None:
    """Both copies are on disk: each blob counts once."""
    numbers = list(range(FULL))
    await put(tier, numbers)
    await tier.remove([key(n) for n in numbers if n % 3 == 0])
    before = tmp_path / "before"
    shutil.copytree(settings.directory, before)
    await put(tier, range(1000, 1000 + PER_SEGMENT))
    assert tier.totals.copied_bytes > 0
    await tier.aclose()
    for path in segment_paths(before):  # as if none had been dropped
        if not (settings.directory / path.name).exists():
            shutil.copy(path, settings.directory)
    larger = NvmeSettings(settings.directory, 16 * MIB, segment_bytes=MIB)
    again = await open_tier(larger)
    kept = [n for n in numbers if n % 3]
    assert await there(again, kept) == kept
    assert again.usage().blobs == len(kept) + PER_SEGMENT
    assert again.usage().held_bytes == again.usage().blobs * 100 * 1024
    await again.aclose()


async def full_of_holes(tier: NvmeTier) -> list[int]:
    """A third of each segment removed; the numbers of the rest. The next segment needs room."""
    await put(tier, range(FULL))
    await tier.remove([key(n) for n in range(0, FULL, 3)])
    return [n for n in range(FULL) if n % 3]


async def test_what_is_removed_while_it_is_copied_stays_removed(
    settings: NvmeSettings, tier: NvmeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone, copies = await full_of_holes(tier), list[BlobKey](), Compactor._copies

    async def copies_then_remove(
        compactor: Compactor, segment: Segment, entries: Sequence[Entry]
    ) -> list[Record]:
        records = await copies(compactor, segment, entries)
        gone.append(records[0].key)
        await tier.remove(gone[-1:])
        return records

    monkeypatch.setattr(Compactor, "_copies", copies_then_remove)
    await put(tier, range(1000, 1000 + PER_SEGMENT))
    await tier.aclose()
    assert gone
    again = await open_tier(settings)
    assert not any(again.holds(gone))
    assert await there(again, range(FULL)) == [n for n in kept if key(n) not in gone]
    await again.aclose()


async def test_what_was_copied_in_vain_leaves_nothing_behind(
    settings: NvmeSettings, tier: NvmeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The medium fails in the middle: what had moved and is removed later does not come back from where it
    was before."""
    kept, copies, calls = await full_of_holes(tier), Compactor._copies, 0

    async def copies_once(compactor: Compactor, segment: Segment, entries: Sequence[Entry]) -> list[Record]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(EIO, "told to fail")
        return await copies(compactor, segment, entries)

    monkeypatch.setattr(Compactor, "_copies", copies_once)
    assert (await tier.write(blobs_of(range(1000, 1000 + PER_SEGMENT))))[-1].outcome is TierOutcome.FULL
    assert await there(tier, kept) == kept
    assert tier.totals.copied_bytes > 0
    monkeypatch.setattr(Compactor, "_copies", copies)
    await tier.remove([key(n) for n in kept])
    await tier.aclose()
    again = await open_tier(settings)
    assert not any(again.holds([key(n) for n in range(FULL)]))
    await again.aclose()


async def test_a_segment_that_is_read_is_not_dropped(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(2 * PER_SEGMENT))
    being_read = tier._index[key(0)].segment
    being_read.pin()
    await tier.remove([key(n) for n in range(PER_SEGMENT)])
    await put(tier, range(100, 110))
    assert being_read in list(tier._segments)
    assert being_read.file.size_bytes > 0
    assert tier.totals.dropped_segments == 0
    being_read.unpin()
    await tier.aclose()
    assert tier.totals.dropped_segments == 1


async def test_reads_go_on_while_it_copies(tier: NvmeTier) -> None:
    numbers = list(range(FULL))
    await put(tier, numbers)
    await tier.remove([key(n) for n in numbers if n % 3 == 0])
    kept = [n for n in numbers if n % 3]
    writes = asyncio.create_task(put(tier, range(1000, 1000 + PER_SEGMENT)))
    while not writes.done():
        assert await there(tier, kept) == kept
    await writes
    assert tier.totals.copied_bytes > 0


async def test_what_is_damaged_is_not_copied(settings: NvmeSettings, tier: NvmeTier) -> None:
    numbers = list(range(FULL))
    await put(tier, numbers)
    for place in stored(settings.directory):
        if place.key == key(1):
            flip(place.path, place.data_at + 5)
    await tier.remove([key(n) for n in numbers if n % 3 == 0])
    await put(tier, range(1000, 1000 + 2 * PER_SEGMENT - 3))
    assert await there(tier, [1]) == []
    assert tier.totals.corrupt == 1
    kept = [n for n in numbers[2:] if n % 3]
    assert await there(tier, kept) == kept


async def test_a_segment_that_cannot_be_read_is_left_alone(tier: NvmeTier, faults: DiskFaults) -> None:
    """Its blobs are still there when the medium recovers; writes that need its room are FULL."""
    numbers = list(range(FULL))
    await put(tier, numbers)
    await tier.remove([key(n) for n in numbers if n % 3 == 0])
    faults.read = EIO
    results = await tier.write(blobs_of(range(1000, 1000 + 2 * PER_SEGMENT)))
    assert results[-1].outcome is TierOutcome.FULL
    faults.read = 0
    kept = [n for n in numbers if n % 3]
    assert await there(tier, kept) == kept


@pytest.mark.parametrize("numbers", [range(0), range(1, 4)])
async def test_removing_what_never_was_writes_nothing(
    tier: NvmeTier, faults: DiskFaults, numbers: range
) -> None:
    await tier.remove([BlobKey(b"%d" % n) for n in numbers])
    assert faults.writes == 0
