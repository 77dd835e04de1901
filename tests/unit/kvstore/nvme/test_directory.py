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
from llmserve.kvstore.tiers.nvme.segments import segment_name, stamps_in
from tests.conformance.faulty_disk import DiskFaults, address
from tests.conformance.segment_files import segment_paths, stored
from tests.unit.kvstore.nvme.blobs import KIB, blobs_of, key, open_tier, put, there

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
    others = ["notes.txt", "0123.kv", "x" * 16 + ".kv", "0123456789abcdef"]
    for name in others:
        (settings.directory / name).write_text("theirs")
    tier = await open_tier(settings)
    await put(tier, [1])
    await tier.aclose()
    assert all((settings.directory / name).read_text() == "theirs" for name in others)


async def test_a_segment_of_nothing_is_removed(settings: NvmeSettings) -> None:
    settings.directory.mkdir()
    (settings.directory / segment_name(5)).write_bytes(bytes(64 * KIB))
    tier = await open_tier(settings)
    assert segment_paths(settings.directory) == []
    assert tier.usage().used_bytes == 0
    await tier.aclose()


def test_names_and_stamps() -> None:
    assert stamps_in([segment_name(0), segment_name(2**64 - 1), "lock", "zz.kv"]) == [0, 2**64 - 1]


async def test_less_capacity_than_before(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(60))
    await tier.aclose()
    smaller = NvmeSettings(settings.directory, 4 * MIB, segment_bytes=MIB)
    again = await open_tier(smaller)
    usage = again.usage()
    assert usage.used_bytes <= usage.capacity_bytes == 4 * MIB
    assert usage.blobs >= 20
    on_disk = sum(path.stat().st_size for path in segment_paths(settings.directory))
    assert on_disk == usage.used_bytes
    assert len(await there(again, range(60))) == usage.blobs
    await again.aclose()


async def test_used_is_what_the_files_take(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(25))
    await tier.aclose()
    again = await open_tier(settings)
    on_disk = sum(path.stat().st_size for path in segment_paths(settings.directory))
    assert again.usage().used_bytes == on_disk
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
    disk.create("file", 4096).close()
    disk.close()


def test_a_file_system_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    disk = LocalDisk(tmp_path)
    file = disk.create("file", 1 << 20)
    assert file.size_bytes == (tmp_path / "file").stat().st_size == 1 << 20
    file.close()
    disk.close()


def test_a_file_without_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    disk = LocalDisk(tmp_path)
    with pytest.raises(OSError, match="No space"):
        disk.create("file", 1 << 20)
    assert "file" not in disk.names()
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
    await put(tier, [99])  # opens a segment
    writes = faults.writes
    await tier.write(blobs_of(range(16), 10 * KIB))
    assert faults.writes - writes == 1
    assert len(await there(tier, range(16), 10 * KIB)) == 16
    reads = faults.reads
    targets = blobs_of(range(16), 10 * KIB)

    await tier.read([ReadTarget(t.key, memoryview(bytearray(10 * KIB))) for t in targets])
    assert faults.reads - reads == 1


async def test_nothing_of_other_memory_is_in_the_padding(settings: NvmeSettings, tier: NvmeTier) -> None:
    await put(tier, range(3), 8191)
    await put(tier, range(3, 6), 1)
    await tier.aclose()
    for place in stored(settings.directory):
        raw, end = place.path.read_bytes(), place.data_at + place.length
        assert raw[end : -(-end // 4096) * 4096].strip(b"\0") == b""


async def test_a_segment_is_durable_before_its_footer(tier: NvmeTier, faults: DiskFaults) -> None:
    await put(tier, range(25))
    await tier.aclose()
    assert faults.syncs == 3


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


def test_the_file_that_was_written_last_comes_last(tmp_path: Path) -> None:
    for name, age in (("a", 20), ("b", 30), ("c", 10)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    disk = LocalDisk(tmp_path)
    assert [name for name in disk.names() if name in "abc"] == ["b", "a", "c"]
    disk.close()
