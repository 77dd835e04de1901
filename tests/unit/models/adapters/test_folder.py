"""A directory of adapters that several processes share. Two folders of one path stand for two processes: a
lock of one excludes the other just the same."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.core.errors import LLMServeError, NotFound, Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters.folder import AdapterFolder
from llmserve.models.adapters.record import AdapterRecord, make_record

BYTES = 1000
A, B, C, D = (AdapterDigest(letter * 64) for letter in "abcd")
Make = Callable[[], AdapterFolder]


@pytest.fixture
def folder(tmp_path: Path) -> AdapterFolder:
    return AdapterFolder(tmp_path / "shared", 3 * BYTES, "lora.disk_gb")


@pytest.fixture
def other(folder: AdapterFolder) -> AdapterFolder:
    return AdapterFolder(folder.path, 3 * BYTES, "lora.disk_gb")


def filling(digest: AdapterDigest, size: int = BYTES) -> Callable[[Path], AdapterRecord]:
    def fill(path: Path) -> AdapterRecord:
        (path / "weights").write_bytes(bytes(size))
        return make_record(path, digest, rank=8)

    return fill


def put(folder: AdapterFolder, *digests: AdapterDigest, at: int = 0) -> None:
    """Each is used one second after the one before."""
    for second, digest in enumerate(digests, at):
        folder.put(BYTES, filling(digest))
        os.utime(folder.path / digest, (second, second))


def names(folder: AdapterFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir() if path.is_dir()}


def test_what_is_put_is_found_and_held(folder: AdapterFolder, other: AdapterFolder) -> None:
    record = folder.put(BYTES, filling(A))
    assert (record.digest, record.rank, record.size_bytes) == (A, 8, BYTES)
    assert other.find(A) == record
    other.remove(A)
    assert other.find(A) == record, "the first one holds it"
    folder.release(A)
    other.remove(A)
    assert other.find(A) is None
    assert names(folder) == set()


def test_nobody_can_write_into_what_is_there(folder: AdapterFolder) -> None:
    put(folder, A)
    assert all(path.stat().st_mode & 0o222 == 0 for path in (folder.path / A).iterdir())


def test_holding_is_idempotent_and_ends_with_close(folder: AdapterFolder, other: AdapterFolder) -> None:
    put(folder, A)
    assert folder.hold(A) == folder.hold(A)
    folder.release(A)
    folder.release(A)
    with pytest.raises(NotFound):
        folder.hold(B)
    folder.hold(A)
    folder.close()
    folder.close()
    other.remove(A)
    assert other.find(A) is None


def test_using_is_apart_from_holding(folder: AdapterFolder, other: AdapterFolder) -> None:
    put(folder, A)
    with folder.using(A):
        folder.release(A)
        other.remove(A)
        assert other.find(A)
    other.remove(A)
    assert other.find(A) is None
    with pytest.raises(NotFound), folder.using(A):
        pass


def test_the_one_that_was_used_longest_ago_makes_room(folder: AdapterFolder) -> None:
    put(folder, A, B, C)
    folder.close()
    folder.hold(A)  # a use
    folder.release(A)
    put(folder, D)
    assert names(folder) == {A, C, D}


def test_what_any_process_holds_makes_no_room(folder: AdapterFolder, other: AdapterFolder) -> None:
    put(folder, A, B, C)
    folder.close()
    other.hold(A)
    folder.hold(B)
    put(folder, D)
    assert names(folder) == {A, B, D}


def test_without_room_it_is_said_what_is_in_use(folder: AdapterFolder, other: AdapterFolder) -> None:
    put(folder, A, B, C)
    with pytest.raises(Unavailable, match=r"no room for an adapter of 1000 bytes: .*lora\.disk_gb \(3000"):
        other.put(BYTES, filling(D))
    assert names(folder) == {A, B, C}


def test_what_is_being_made_takes_its_room_from_the_start(
    folder: AdapterFolder, other: AdapterFolder
) -> None:
    def fill(path: Path) -> AdapterRecord:
        with pytest.raises(Unavailable):
            other.put(BYTES, filling(B))
        return filling(A)(path)

    folder.put(3 * BYTES, fill)
    assert names(folder) == {A}


def test_what_is_being_made_is_not_seen(folder: AdapterFolder, other: AdapterFolder) -> None:
    def fill(path: Path) -> AdapterRecord:
        record = filling(A)(path)
        assert other.find(A) is None
        return record

    folder.put(BYTES, fill)
    assert other.find(A) is not None


def test_the_same_adapter_made_twice_at_once_is_there_once(
    folder: AdapterFolder, other: AdapterFolder
) -> None:
    def fill(path: Path) -> AdapterRecord:
        other.put(BYTES, filling(A))
        return filling(A)(path)

    folder.put(BYTES, fill)
    assert names(folder) == {A}
    other.release(A)
    other.remove(A)
    assert other.find(A), "the slower one holds it, too"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Quota")])
def test_a_full_disk_leaves_nothing(folder: AdapterFolder, error: OSError) -> None:
    def fill(path: Path) -> AdapterRecord:
        (path / "half").write_bytes(bytes(500))
        raise error

    with pytest.raises(Unavailable, match="no room for an adapter"):
        folder.put(BYTES, fill)
    assert names(folder) == set()


def test_a_full_file_system_makes_room_even_below_the_limit(
    folder: AdapterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, A)
    folder.close()
    free = iter([0, 1 << 30, 1 << 30])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, next(free)))
    put(folder, B)
    assert names(folder) == {B}


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.EIO, "I/O")])
def test_whatever_fails_leaves_nothing(folder: AdapterFolder, error: BaseException) -> None:
    def fill(path: Path) -> AdapterRecord:
        raise error

    with pytest.raises(type(error)):
        folder.put(BYTES, fill)
    assert names(folder) == set()
    put(folder, A, B, C)


def test_what_a_killed_process_left_is_removed_at_the_next_start(folder: AdapterFolder) -> None:
    for name in (".partial-3000-abc", ".removed-1-2-abc"):
        (folder.path / name).mkdir()
        (folder.path / name / "weights").write_bytes(b"half")
    AdapterFolder(folder.path, BYTES, "lora.disk_gb")
    assert names(folder) == set()


def test_what_a_killed_process_left_makes_room_while_others_live(folder: AdapterFolder) -> None:
    (folder.path / ".partial-3000-abc").mkdir()
    put(folder, A)
    assert names(folder) == {A}


def test_what_a_living_process_makes_survives_the_start_of_another(folder: AdapterFolder) -> None:
    def fill(path: Path) -> AdapterRecord:
        AdapterFolder(folder.path, BYTES, "lora.disk_gb")
        return filling(A)(path)

    assert folder.put(BYTES, fill).digest == A


@pytest.mark.parametrize("damage", ["record.json", "weights"])
def test_what_is_not_whole_is_not_there_and_is_made_again(folder: AdapterFolder, damage: str) -> None:
    put(folder, A)
    folder.close()
    (folder.path / A / damage).unlink()
    (folder.path / A / damage).write_bytes(b"{}")
    assert folder.find(A) is None
    with pytest.raises(NotFound):
        folder.hold(A)
    put(folder, A)
    assert folder.find(A) is not None


def test_what_is_damaged_makes_room(folder: AdapterFolder, other: AdapterFolder) -> None:
    put(folder, A)
    folder.close()
    (folder.path / A / "weights").unlink()
    put(other, B)
    assert names(folder) == {B}


@pytest.mark.parametrize("name", ["", "..", "../shared", "a" * 63, "A" * 64, "/etc"])
def test_nothing_but_a_digest_is_a_path(folder: AdapterFolder, name: str) -> None:
    put(folder, A)
    assert folder.find(AdapterDigest(name)) is None
    with pytest.raises(NotFound):
        folder.hold(AdapterDigest(name))
    folder.remove(AdapterDigest(name))
    assert names(folder) == {A}


def test_a_directory_of_somebody_else_is_refused_where_all_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    AdapterFolder(tmp_path / "own", BYTES, "lora.disk_gb")
    (tmp_path / "shm").mkdir(mode=0o777)
    (tmp_path / "shm").chmod(0o1777)
    with pytest.raises(LLMServeError, match="belongs to user"):
        AdapterFolder(tmp_path / "shm" / "adapters", BYTES, "lora.dram_gb")
