"""Which blobs a start finds, whatever happened to the files meanwhile."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from llmserve.kvstore.tiers.base import BlobKey, TierOutcome
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from llmserve.kvstore.tiers.nvme.heads import HEAD_BYTES, BlobHead, Place
from llmserve.kvstore.tiers.nvme.pages import PageRun
from llmserve.kvstore.tiers.nvme.recovery import _kept
from tests.conformance.nvme_files import flip, stored
from tests.unit.kvstore.tiers.nvme.blobs import KIB, get, key, open_tier, put, there

MIB = 1 << 20
SIZE = 9 * KIB + 13


@pytest.fixture
async def closed(settings: NvmeSettings, tier: NvmeTier) -> Path:
    """A directory with blobs 0 to 9, of which 3 is removed."""
    await put(tier, range(10), SIZE)
    await tier.remove([key(3)])
    await tier.aclose()
    return settings.directory


async def test_only_heads_are_read(settings: NvmeSettings, closed: Path) -> None:
    data = (closed / "data.kv").stat().st_size
    with (closed / "data.kv").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(data - 4096))
    again = await open_tier(settings)
    assert again.usage().blobs == 9
    assert {(await get(again, n, SIZE)).outcome for n in range(10) if n != 3} == {TierOutcome.CORRUPT}
    assert again.usage().blobs == 0
    again.space.check_integrity()
    await again.aclose()


async def test_the_order_of_writing_is_kept(settings: NvmeSettings, closed: Path) -> None:
    again = await open_tier(settings)
    await put(again, [3, 20], SIZE)  # into the slot of 3
    await again.aclose()
    last = await open_tier(settings)
    assert [name for name, _ in last.held()] == [key(n) for n in (0, 1, 2, 4, 5, 6, 7, 8, 9, 3, 20)]
    await last.aclose()


@pytest.mark.parametrize("slots", [1, 2, 5, 10])
async def test_a_heads_file_that_is_cut(settings: NvmeSettings, closed: Path, slots: int) -> None:
    with (closed / "heads.kv").open("r+b") as file:
        file.truncate(slots * HEAD_BYTES + 100)
    again = await open_tier(settings)
    kept = [n for n in range(slots - 1) if n != 3]
    assert await there(again, range(10), SIZE) == kept
    again.space.check_integrity()
    await put(again, [3, 30], SIZE)
    await again.aclose()


@pytest.mark.parametrize("pages", [0, 1, 4, 9, 20])
async def test_a_data_file_that_is_cut(settings: NvmeSettings, closed: Path, pages: int) -> None:
    whole = [n for n in range(10) if n != 3 and 1 + 3 * (n + 1) <= pages]
    with (closed / "data.kv").open("r+b") as file:
        file.truncate(pages * 4096)
    again = await open_tier(settings)
    assert await there(again, range(10), SIZE) == whole
    assert again.usage().blobs == len(whole)
    again.space.check_integrity()
    await put(again, range(40, 44), SIZE)
    await again.aclose()
    last = await open_tier(settings)
    assert await there(last, range(50), SIZE) == [*whole, *range(40, 44)]
    await last.aclose()


async def test_the_image_of_the_files_stored_as_a_blob_is_no_blob(
    settings: NvmeSettings, tmp_path: Path, closed: Path
) -> None:
    """Neither heads nor data inside the data of another blob are found."""
    image = (closed / "heads.kv").read_bytes() + (closed / "data.kv").read_bytes()[: 40 * 4096]
    other = await open_tier(NvmeSettings(tmp_path / "other", settings.capacity_bytes))
    from llmserve.kvstore.tiers.base import Blob

    await other.write([Blob(BlobKey(b"image"), b"", memoryview(image))])
    await other.aclose()
    again = await open_tier(NvmeSettings(tmp_path / "other", settings.capacity_bytes))
    assert [name for name, _ in again.held()] == [b"image"]
    await again.aclose()


def copies(closed: Path, tmp_path: Path) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        yield Path(shutil.copytree(closed, tmp_path / f"copy-{number}"))


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(HEAD_BYTES, 11 * HEAD_BYTES - 1), mask=st.integers(1, 255))
async def test_any_byte_of_the_heads(closed: Path, settings: NvmeSettings, at: int, mask: int) -> None:
    """No blob is lost but the one whose head was hit, and none is read wrongly."""
    await check_after_flip(closed, settings, "heads.kv", at, mask, {at // HEAD_BYTES - 1})


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(4096, 31 * 4096 - 1), mask=st.integers(1, 255))
async def test_any_byte_of_the_data(closed: Path, settings: NvmeSettings, at: int, mask: int) -> None:
    await check_after_flip(closed, settings, "data.kv", at, mask, {(at // 4096 - 1) // 3})


async def check_after_flip(
    closed: Path, settings: NvmeSettings, name: str, at: int, mask: int, hit: set[int]
) -> None:
    work = closed.with_name("work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(closed, work)
    flip(work / name, at, mask)
    again = await open_tier(NvmeSettings(work, settings.capacity_bytes))
    found = await there(again, range(10), SIZE)
    again.space.check_integrity()
    await again.aclose()
    assert {0, 1, 2, 4, 5, 6, 7, 8, 9} - set(found) <= hit
    assert 3 not in found


# -- which heads count (pure)


def head(sequence: int, number: int, *runs: PageRun, slot: int = 1) -> BlobHead:
    return BlobHead(sequence, key(number), Place((slot,), 0, 4096, 0, runs).packed())


def test_the_newer_of_two_heads_of_a_key_counts() -> None:
    old, new, other = head(1, 1, PageRun(1, 1)), head(3, 1, PageRun(5, 1)), head(2, 2, PageRun(9, 1))
    assert _kept([new, old, other], 10) == [other, new]


def test_the_newer_of_two_heads_with_a_page_in_common_counts() -> None:
    old, new, other = head(1, 1, PageRun(1, 4)), head(2, 2, PageRun(4, 3)), head(3, 3, PageRun(7, 1))
    assert _kept([old, new, other], 10) == [new, other]
    old, new = head(2, 1, PageRun(1, 4)), head(1, 2, PageRun(4, 3))
    assert _kept([old, new, other], 10) == [old, other]


def test_a_page_inside_a_long_run_is_found() -> None:
    long, first, second = head(9, 1, PageRun(1, 50)), head(2, 2, PageRun(3, 1)), head(3, 3, PageRun(40, 1))
    assert _kept([long, first, second], 100) == [long]
    long = head(1, 1, PageRun(1, 50))
    assert _kept([long, first, second], 100) == [first, second]


def test_what_lies_beyond_the_file_or_on_the_superblock_does_not_count() -> None:
    inside, beyond, at_zero = head(1, 1, PageRun(1, 9)), head(2, 2, PageRun(10, 1)), head(3, 3, PageRun(0, 1))
    assert _kept([inside, beyond, at_zero], 10) == [inside]
    assert _kept([inside, beyond, at_zero], 11) == [inside, beyond]
    assert _kept([], 10) == []


async def test_what_does_not_count_is_erased(settings: NvmeSettings, closed: Path) -> None:
    before = len(list(stored(closed)))
    again = await open_tier(NvmeSettings(closed, 1 * MIB))
    await again.aclose()
    assert (before, len(list(stored(closed)))) == (9, 9)
    with (closed / "data.kv").open("r+b") as file:
        file.truncate(10 * 4096)
    await (await open_tier(settings)).aclose()
    assert {blob.key for blob in stored(closed)} == {key(0), key(1), key(2)}
