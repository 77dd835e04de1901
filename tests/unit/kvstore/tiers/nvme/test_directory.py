"""The directory: locked, left as it was found, and of any file system."""

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from llmserve.core.errors import InvalidRequest, StartFailed
from llmserve.kvstore.tiers.base import Blob, BlobKey, ReadTarget, TierOutcome
from llmserve.kvstore.tiers.nvme import NvmeSettings, NvmeTier
from llmserve.kvstore.tiers.nvme.disk import LocalDisk
from tests.conformance.faulty_disk import DiskFaults, address
from tests.conformance.nvme_files import flip, size_on_disk, stored
from tests.unit.kvstore.tiers.nvme.blobs import KIB, blobs_of, key, open_tier, put, there, try_put

MIB = 1 << 20


async def test_a_second_tier_on_it_does_not_start(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, [1])
    second = NvmeTier(settings)
    with pytest.raises(StartFailed, match=rf"in use by another process \(pid {os.getpid()}\)"):
        await second.open()
    await second.aclose()
    await put(tier, [2])
    assert await there(tier, [1, 2]) == [1, 2]


async def test_it_is_free_after_the_end(settings: NvmeSettings, tier: NvmeTier) -> None:
    await tier.aclose()
    await (await open_tier(settings)).aclose()


async def test_what_is_not_ours_stays(settings: NvmeSettings) -> None:
    settings.directory.mkdir()
    others = ["notes.txt", "0123.kv", "x" * 16 + ".kv", "0123456789abcdef", "0123456789abcdef.kv"]
    for name in others:
        (settings.directory / name).write_text("theirs")
    tier = await open_tier(settings)
    await put(tier, [1])
    await tier.aclose()
    assert all((settings.directory / name).read_text() == "theirs" for name in others)


async def test_less_capacity_than_before(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(60))
    await tier.aclose()
    smaller = NvmeSettings(settings.directory, 4 * MIB)
    again = await open_tier(smaller)
    usage = again.usage()
    assert usage.used_bytes <= usage.capacity_bytes == 4 * MIB
    assert usage.blobs >= 20
    assert size_on_disk(settings.directory) <= 4 * MIB
    again.space.check_integrity()
    assert len(await there(again, range(60))) == usage.blobs
    await again.aclose()
    larger = await open_tier(settings)
    assert larger.usage().blobs == usage.blobs, "what was given up does not come back"
    await larger.aclose()


async def test_the_files_never_pass_the_capacity(settings: NvmeSettings, tier: NvmeTier) -> None:
    for number in range(100):
        outcome = (await try_put(tier, number)).outcome
        assert tier.usage().used_bytes <= size_on_disk(settings.directory) <= settings.capacity_bytes
    assert outcome is TierOutcome.FULL
    assert tier.usage().held_bytes > 0.9 * settings.capacity_bytes


async def test_an_empty_tier_takes_no_room(settings: NvmeSettings, tier: NvmeTier) -> None:
    assert size_on_disk(settings.directory) < 16 * KIB
    assert tier.usage().blobs == 0


# -- files that are not ours, or no longer


@pytest.mark.parametrize("name", ["heads.kv", "data.kv"])
@pytest.mark.parametrize("content", [b"theirs", bytes(8192)])
async def test_a_foreign_file_fails_the_start_and_stays(
    settings: NvmeSettings, name: str, content: bytes
) -> None:
    settings.directory.mkdir()
    (settings.directory / name).write_bytes(content)
    tier = NvmeTier(settings)
    with pytest.raises(StartFailed, match=rf"{name} is no file of an NVMe tier: move it away"):
        await tier.open()
    await tier.aclose()
    assert (settings.directory / name).read_bytes() == content


def segment(magic: bytes = b"LKV1") -> bytes:
    """The beginning of a file of the first format: a checksum, then the magic."""
    return bytes(range(8)) + magic + bytes(64 * KIB)


async def test_segments_of_the_first_format_are_dropped_with_a_word(
    settings: NvmeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.directory.mkdir()
    for number in (1, 2):
        (settings.directory / f"{number:016x}.kv").write_bytes(segment())
    tier = await open_tier(settings)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(
        "2 segment files of an earlier release are removed (first: 0000000000000001.kv)"
    )
    assert "their blocks are lost" in warning
    assert sorted(path.name for path in settings.directory.iterdir()) == ["data.kv", "heads.kv", "lock"]
    await put(tier, [1])
    await tier.aclose()


@pytest.mark.parametrize(
    ("name", "content"),
    [("0" * 16 + ".kv", segment(b"LKV9")), ("0" * 15 + ".kv", segment()), ("G" * 16 + ".kv", segment())],
)
async def test_what_only_looks_like_a_segment_stays(
    settings: NvmeSettings, name: str, content: bytes
) -> None:
    settings.directory.mkdir()
    (settings.directory / name).write_bytes(content)
    await (await open_tier(settings)).aclose()
    assert (settings.directory / name).read_bytes() == content


async def test_a_directory_named_like_a_segment_stays(settings: NvmeSettings) -> None:
    (settings.directory / ("0" * 16 + ".kv")).mkdir(parents=True)
    await (await open_tier(settings)).aclose()
    assert (settings.directory / ("0" * 16 + ".kv")).is_dir()


@pytest.mark.parametrize("name", ["heads.kv", "data.kv"])
async def test_a_file_that_is_lost_is_no_blob_read_wrongly(
    settings: NvmeSettings, tier: NvmeTier, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await put(tier, range(5))
    await tier.aclose()
    (settings.directory / name).unlink()
    again = await open_tier(settings)
    assert "its files do not belong together; their blocks are lost" in caplog.text
    assert (again.usage().blobs, await there(again, range(5))) == (0, [])
    await put(again, [1])
    assert await there(again, [1]) == [1]
    await again.aclose()


@pytest.mark.parametrize("at", [0, 8, 20])  # checksum, magic, stamp
@pytest.mark.parametrize("name", ["heads.kv", "data.kv"])
async def test_a_damaged_superblock_starts_over(
    settings: NvmeSettings, tier: NvmeTier, name: str, at: int
) -> None:
    await put(tier, range(5))
    await tier.aclose()
    flip(settings.directory / name, at)
    again = await open_tier(settings)
    assert again.usage().blobs == 0
    await put(again, [1])
    await again.aclose()
    last = await open_tier(settings)
    assert await there(last, [1]) == [1]
    await last.aclose()


async def test_the_files_of_two_tiers_do_not_mix(
    settings: NvmeSettings, tier: NvmeTier, tmp_path: Path
) -> None:
    await put(tier, range(5))
    await tier.aclose()
    other = await open_tier(NvmeSettings(tmp_path / "other", settings.capacity_bytes))
    await put(other, range(5, 10))
    await other.aclose()
    (tmp_path / "other" / "heads.kv").rename(settings.directory / "heads.kv")
    again = await open_tier(settings)
    assert again.usage().blobs == 0
    await again.aclose()


def test_a_file_system_without_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    disk = LocalDisk(tmp_path)
    assert not disk.is_direct
    disk.open("file", direct=True).close()
    disk.close()


def test_a_file_system_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    disk = LocalDisk(tmp_path)
    file = disk.open("file", direct=True)
    file.resize(1 << 20)
    assert file.size_bytes == (tmp_path / "file").stat().st_size == 1 << 20
    file.close()
    disk.close()


def test_a_file_without_room_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    disk = LocalDisk(tmp_path)
    file = disk.open("file", direct=True)
    file.resize(4096)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space"):
        file.resize(1 << 20)
    assert file.size_bytes == (tmp_path / "file").stat().st_size == 4096
    file.close()
    disk.close()


def test_a_file_can_be_cut(tmp_path: Path) -> None:
    disk = LocalDisk(tmp_path)
    file = disk.open("file", direct=True)
    file.resize(8192)
    file.resize(4096)
    assert file.size_bytes == (tmp_path / "file").stat().st_size == 4096
    file.close()
    disk.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_nothing_is_left_open(settings: NvmeSettings) -> None:
    files, threads = open_files(), threading.active_count()
    tier = await open_tier(settings)
    await put(tier, range(40))
    await tier.remove([key(n) for n in range(30)])
    assert open_files() > files
    await tier.aclose()
    assert (open_files(), threading.active_count()) == (files, threads)


async def test_nothing_is_left_open_after_a_failed_start(settings: NvmeSettings, tier: NvmeTier) -> None:
    files, threads = open_files(), threading.active_count()
    second = NvmeTier(settings)
    with pytest.raises(StartFailed):
        await second.open()
    await second.aclose()
    assert (open_files(), threading.active_count()) == (files, threads)


# -- how it uses the medium


async def test_neighbours_are_written_and_read_together(tier: NvmeTier, faults: DiskFaults) -> None:
    await put(tier, [99])  # the files have room
    writes = faults.writes
    await tier.write(blobs_of(range(16), 10 * KIB))
    assert faults.writes - writes == 2, "data and heads"
    assert len(await there(tier, range(16), 10 * KIB)) == 16
    reads = faults.reads
    targets = [
        ReadTarget(blob.key, memoryview(bytearray(10 * KIB))) for blob in blobs_of(range(16), 10 * KIB)
    ]
    await tier.read(targets)
    assert faults.reads - reads == 1
    writes = faults.writes
    await tier.remove([key(n) for n in range(16)])
    assert faults.writes - writes == 1


async def test_nothing_of_other_memory_is_in_the_padding(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(3), 8191)
    await put(tier, range(3, 6), 1)
    await tier.aclose()
    found = list(stored(settings.directory))
    assert len(found) == 6
    for blob in found:
        raw, end = blob.path.read_bytes(), blob.data_at + blob.length + len(b"header")
        assert raw[end : -(-end // 4096) * 4096].strip(b"\0") == b""


async def test_what_is_written_is_durable_after_the_end(tier: NvmeTier, faults: DiskFaults) -> None:
    before = faults.syncs
    await put(tier, range(25))
    assert faults.syncs == before
    await tier.aclose()
    assert faults.syncs == before + 2


async def test_an_aligned_buffer_is_read_without_a_copy(tier: NvmeTier, faults: DiskFaults) -> None:

    await put(tier, [1])
    buffer = memoryview(mmap.mmap(-1, 100 * KIB))
    await tier.read([ReadTarget(key(1), buffer)])
    assert address(buffer) in faults.landed


@pytest.mark.parametrize(("name", "header"), [(b"k" * 65, b""), (b"k", b"h" * 1025)])
async def test_a_key_or_header_too_long_is_the_callers_mistake(
    tier: NvmeTier, name: bytes, header: bytes
) -> None:
    with pytest.raises(InvalidRequest):
        await tier.write([Blob(BlobKey(name), header, memoryview(b"data"))])
    (result,) = await tier.write(blobs_of([1]))
    assert result.outcome is TierOutcome.DONE
