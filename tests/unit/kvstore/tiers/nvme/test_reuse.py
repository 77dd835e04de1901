"""Room that was freed is used in place, whatever the sizes; what is being read keeps its room."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from llmserve.kvstore.tiers.base import ReadTarget, TierOutcome
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from llmserve.kvstore.tiers.nvme.heads import BlobHead, Place, slots_of
from llmserve.kvstore.tiers.nvme.pages import PageRun
from llmserve.kvstore.tiers.nvme.record_io import RecordIO, neighbours
from llmserve.kvstore.tiers.nvme.space import Space
from tests.conformance.faulty_disk import DiskFaults
from tests.conformance.nvme_files import size_on_disk
from tests.unit.kvstore.tiers.nvme.blobs import KIB, blobs_of, data_of, key, open_tier, put, there, try_put

MIB = 1 << 20


async def test_churn_for_long_keeps_every_promise(settings: NvmeSettings, tier: NvmeTier) -> None:
    """Ten times the capacity, each blob removed 40 blobs later: never FULL, never over, and it restarts."""
    for number in range(800):
        assert (await try_put(tier, number)).outcome is TierOutcome.DONE
        if number >= 40:
            await tier.remove([key(number - 40)])
        assert tier.usage().used_bytes <= tier.usage().capacity_bytes
    tier.space.check_integrity()
    await tier.aclose()
    again = await open_tier(settings)
    assert again.usage().blobs == 40
    assert await there(again, range(800)) == [*range(760, 800)]
    again.space.check_integrity()
    await again.aclose()


@pytest.mark.parametrize("seed", range(3))
async def test_any_sizes_fill_what_is_promised(settings: NvmeSettings, tier: NvmeTier, seed: int) -> None:
    """As long as the blobs with their pages are within `blob_capacity_bytes`, no write is FULL."""
    chance, sizes, used = random.Random(seed), dict[int, int](), 0
    for number in range(400):
        size = chance.choice((1, 5000, 60 * KIB, 300 * KIB, 900 * KIB))
        charge = -(-size // 4096) * 4096 + 4096
        while used + charge > settings.blob_capacity_bytes:
            gone = chance.choice(list(sizes))
            used -= -(-sizes.pop(gone) // 4096) * 4096 + 4096
            await tier.remove([key(gone)])
        assert (await try_put(tier, number, size)).outcome is TierOutcome.DONE
        sizes[number], used = size, used + charge
    tier.space.check_integrity()
    assert size_on_disk(settings.directory) <= settings.capacity_bytes
    await tier.aclose()
    again = await open_tier(settings)
    again.space.check_integrity()
    for number, size in sizes.items():
        assert await there(again, [number], size) == [number]
    await again.aclose()


async def test_a_large_blob_lies_in_the_holes_of_many_small_ones(
    settings: NvmeSettings, tier: NvmeTier
) -> None:
    """In more pieces than one head names; it is there after a restart, and its room comes back."""
    count, large = 0, 2000
    while (await try_put(tier, count, 12 * KIB)).outcome is TierOutcome.DONE:
        count += 1
    await tier.remove([key(n) for n in range(0, count, 2)])
    size = 3 * MIB
    await put(tier, [large], size)
    place = tier.space.find(key(large))
    assert place
    assert len(place.runs) > 100
    assert len(place.slots) > 3
    tier.space.check_integrity()
    kept = list(range(1, count, 2))
    await tier.aclose()
    again = await open_tier(settings)
    assert await there(again, [large], size) == [large]
    assert await there(again, kept, 12 * KIB) == kept
    await again.remove([key(large)])
    again.space.check_integrity()
    await put(again, [large + 1], size)
    await again.aclose()
    last = await open_tier(settings)
    assert last.holds([key(large), key(large + 1)]) == [False, True]
    await last.aclose()


class SlowReads(RecordIO):
    """Reads wait until they may go on."""

    def __init__(self, inner: RecordIO) -> None:
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    def read(self, wanted):  # type: ignore[no-untyped-def]
        self._loop.call_soon_threadsafe(self.begun.set)
        asyncio.run_coroutine_threadsafe(self.go.wait(), self._loop).result()
        return self._inner.read(wanted)


async def test_what_is_read_while_it_is_removed_is_read_right(tier: NvmeTier) -> None:
    await put(tier, [1])
    assert tier._parts
    slow = tier._parts.reader._io = SlowReads(tier._parts.reader._io)
    buffer = bytearray(100 * KIB)
    read = asyncio.create_task(tier.read([ReadTarget(key(1), memoryview(buffer))]))
    await slow.begun.wait()
    await tier.remove([key(1)])
    assert tier.holds([key(1)]) == [False]
    for number in range(2, 70):  # fills the tier: its pages would be the first to be used
        await try_put(tier, number)
    tier.space.check_integrity()
    slow.go.set()
    (result,) = await read
    assert result.outcome is TierOutcome.DONE
    assert buffer == data_of(1, 100 * KIB)
    tier.space.check_integrity()
    assert (await try_put(tier, 100)).outcome is TierOutcome.DONE, "its room is free afterwards"


async def test_a_batch_is_in_a_row_though_others_write(tier: NvmeTier, faults: DiskFaults) -> None:
    """Also while a file grows."""
    await asyncio.gather(*(tier.write(blobs_of(range(n, n + 10), 10 * KIB)) for n in range(0, 100, 10)))
    for first in range(0, 100, 10):
        places = [tier.space.find(key(n)) for n in range(first, first + 10)]
        assert len(neighbours([place for place in places if place])) == 1
    assert len(await there(tier, range(100), 10 * KIB)) == 100


# -- space (pure)


def full_space() -> Space:
    space = Space(8 * MIB)
    space.heads_grew(space.heads_growth_bytes())
    space.data_grew(space.data_growth_bytes(1))
    return space


def take(space: Space, pages: int, *, in_pieces: bool = False) -> Place | None:
    return space.take(pages * 4096, 0, in_pieces=in_pieces)


def test_files_grow_in_steps_up_to_the_capacity() -> None:
    space = Space(8 * MIB)
    while size := space.data_growth_bytes(1):
        assert size <= MIB
        space.data_grew(size)
        assert space.data_bytes <= 8 * MIB - 64 * KIB
    assert space.data_bytes == 8 * MIB - 64 * KIB
    assert space.heads_growth_bytes() == 64 * KIB - 512, "the room that is kept for heads"
    space.heads_grew(64 * KIB - 512)
    assert space.heads_growth_bytes() == 0


def test_a_large_blob_makes_a_large_step() -> None:
    assert Space(1 << 30).data_growth_bytes(5000) == 5000 * 4096
    assert Space(1 << 30).data_growth_bytes(1) == 16 * MIB
    assert Space(1 << 40).data_growth_bytes(1) == 1 << 30
    assert Space(1 << 40).heads_growth_bytes() == 4 * MIB


def test_without_a_slot_nothing_is_taken() -> None:
    space = Space(8 * MIB)
    space.data_grew(space.data_growth_bytes(1))
    assert not space.has_slot
    assert take(space, 1) is None
    space.check_integrity()
    space.heads_grew(512)
    place = take(space, 1)
    assert place
    assert (place.slots, space.has_slot) == ((1,), False)


def test_slots_are_used_from_the_front_and_given_back() -> None:
    space = full_space()
    first, second = take(space, 1), take(space, 2)
    assert first
    assert second
    assert (first.slots, second.slots) == ((1,), (2,))
    assert (first.runs, second.runs) == ((PageRun(1, 1),), (PageRun(2, 2),))
    space.give(first)
    again = take(space, 1)
    assert again == first


def test_the_index_counts_what_it_holds() -> None:
    space = full_space()
    place = space.take(5000, 7, in_pieces=False)
    assert place
    space.keep(key(1), place)
    assert (len(space), space.held_bytes, space.sizes()) == (1, 5000, [(key(1), 5000)])
    assert space.find(key(1)) == place
    assert space.usage().used_bytes == (1 + 2) * 4096 + 2 * 512
    space.check_integrity()
    assert space.forget(key(1)) == place
    assert space.forget(key(1)) is None
    assert space.find(key(1)) is None
    assert (len(space), space.held_bytes) == (0, 0)
    with pytest.raises(AssertionError):
        space.check_integrity()
    space.give(place)
    space.check_integrity()


def test_room_that_is_read_comes_back_after_the_last_reader() -> None:
    space = full_space()
    place = take(space, 1)
    assert place
    space.keep(key(1), place)
    space.pin(place)
    space.pin(place)
    space.forget(key(1))
    space.give(place)
    space.unpin(place)
    other = take(space, 1)
    assert other
    assert other.runs != place.runs
    space.unpin(place)
    assert take(space, 1) == place
    assert space._readers == {}


def head(sequence: int, number: int, slots: tuple[int, ...], *runs: PageRun) -> BlobHead:
    return BlobHead(sequence, key(number), Place(slots, 0, 4096, 0, runs).packed())


def test_a_space_is_restored() -> None:
    space = Space(8 * MIB)
    heads = [head(4, 1, (3,), PageRun(10, 2)), head(9, 2, (1, 2), PageRun(5, 1), PageRun(20, 4))]
    space.restore(heads, 30 * 4096, 6 * 512)
    space.check_integrity()
    assert [name for name, _ in space.sizes()] == [key(1), key(2)]
    assert (space.held_bytes, space.sequence(), space.sequence()) == (8192, 10, 11)
    assert (space.data_bytes, space.heads_bytes) == (30 * 4096, 6 * 512)
    assert slots_of(heads[1].place) == (1, 2)
    place = take(space, 1)
    assert place
    assert place.slots == (4,)


def test_an_empty_space_is_restored() -> None:
    space = Space(8 * MIB)
    space.restore([], 4096, 512)
    space.check_integrity()
    assert (space.sequence(), space.has_slot) == (0, False)


# -- neighbours (pure)


def places(*rows: Sequence[PageRun], length: int = 4096) -> list[Place]:
    return [Place((n,), 0, length, 0, tuple(runs)) for n, runs in enumerate(rows)]


def test_what_lies_in_a_row_is_one_group() -> None:
    rows = places([PageRun(7, 1)], [PageRun(5, 1)], [PageRun(6, 1)], [PageRun(9, 1)])
    assert neighbours(rows) == [[1, 2, 0], [3]]
    assert neighbours([]) == []


def test_a_run_longer_than_its_blob_ends_a_group() -> None:
    assert neighbours(places([PageRun(5, 2)], [PageRun(7, 1)])) == [[0], [1]]


def test_a_blob_in_pieces_is_alone() -> None:
    rows = places([PageRun(5, 1)], [PageRun(6, 1), PageRun(20, 1)], [PageRun(7, 1)], length=4096)
    assert neighbours(rows) == [[0], [1], [2]]


def test_a_group_is_one_call() -> None:
    rows = places(*([PageRun(n, 1)] for n in range(130)))
    assert [len(group) for group in neighbours(rows)] == [64, 64, 2]
    large = places(*([PageRun(n * 400, 400)] for n in range(5)), length=400 * 4096)
    assert [len(group) for group in neighbours(large)] == [2, 2, 1]
