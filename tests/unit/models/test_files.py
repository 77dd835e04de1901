"""The lock between processes, and digests of files, kept for as long as the files stay.

Two file descriptions in one process exclude each other as two processes do.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.core.errors import DeadlineExceeded, LLMServeError
from llmserve.models import files
from llmserve.models.files import DigestCache, file_lock, file_sha256, write_atomically

PATIENCE_SECONDS = 20.0


class Reads:
    """Counts the files that were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[Path] = []
        monkeypatch.setattr(files, "file_sha256", self._read)

    def _read(self, path: Path, on_bytes: Callable[[int], None]) -> str:
        self.paths.append(path)
        return file_sha256(path, on_bytes)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def later(store: Path) -> DigestCache:
    """A cache for which all files are old."""
    return DigestCache(store, now_ns=lambda: time.time_ns() + 60_000_000_000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_text("one")
    return path


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_is_that_of_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (9 << 20))
    assert file_sha256(path) == hashlib.sha256(b"x" * (9 << 20)).hexdigest()


def test_a_file_is_read_once_by_all_who_share_the_store(file: Path, tmp_path: Path, reads: Reads) -> None:
    store = tmp_path / "cache" / "digests.json"
    assert [later(store).sha256(file) for _ in range(3)] == [sha256("one")] * 3
    assert len(reads.paths) == 1


def test_another_name_of_the_file_is_the_same_file(file: Path, tmp_path: Path, reads: Reads) -> None:
    cache = later(tmp_path / "digests.json")
    (tmp_path / "link").symlink_to(file)
    assert cache.sha256(file) == cache.sha256(tmp_path / "link")
    assert len(reads.paths) == 1


def test_new_contents_are_seen_even_if_size_and_time_are_put_back(file: Path, tmp_path: Path) -> None:
    cache = later(tmp_path / "digests.json")
    assert cache.sha256(file) == sha256("one")
    before = file.stat()
    file.write_text("two")
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # a tick of the file system's clock
        os.utime(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert cache.sha256(file) == sha256("two")


def test_another_file_in_its_place_is_seen(file: Path, tmp_path: Path) -> None:
    cache = later(tmp_path / "digests.json")
    assert cache.sha256(file) == sha256("one")
    (tmp_path / "new").write_text("new")
    os.replace(tmp_path / "new", file)
    assert cache.sha256(file) == sha256("new")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": 1}', "\0"])
def test_a_damaged_store_costs_only_time(file: Path, tmp_path: Path, damage: str, reads: Reads) -> None:
    store = tmp_path / "digests.json"
    store.write_text(damage)
    cache = later(store)
    assert [cache.sha256(file), cache.sha256(file)] == [sha256("one")] * 2
    assert len(reads.paths) == 1


def test_a_store_that_cannot_be_written_costs_only_time(file: Path, reads: Reads) -> None:
    cache = later(file / "digests.json")
    assert [cache.sha256(file), cache.sha256(file)] == [sha256("one")] * 2
    assert len(reads.paths) == 2


def test_files_that_are_gone_are_forgotten(file: Path, tmp_path: Path) -> None:
    store = tmp_path / "digests.json"
    cache = later(store)
    cache.sha256(file)
    file.unlink()
    other = tmp_path / "other"
    other.touch()
    cache.sha256(other)
    assert str(file) not in store.read_text()
    with pytest.raises(FileNotFoundError):
        cache.sha256(file)


def test_a_write_leaves_nothing_but_its_file(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_atomically(tmp_path / "deep" / "file", text)
        assert [path.read_text() for path in (tmp_path / "deep").iterdir()] == [text]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\udcff")
    assert [one.read_text() for one in path.parent.iterdir()] == ["one"]


def test_a_digest_of_a_file_that_changed_just_now_is_not_kept(
    file: Path, tmp_path: Path, reads: Reads
) -> None:
    """The next change might come within the same tick of the file system's clock."""
    store = tmp_path / "digests.json"
    assert [DigestCache(store).sha256(file) for _ in range(2)] == [sha256("one")] * 2
    assert len(reads.paths) == 2
    assert json.loads(store.read_text()) == {}


def test_a_file_that_changes_while_it_is_read_is_read_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = ["two", "longer"]

    def read_and_change(path: Path, on_bytes: Callable[[int], None]) -> str:
        digest = file_sha256(path, on_bytes)
        if contents:
            path.write_text(contents.pop())
        return digest

    monkeypatch.setattr(files, "file_sha256", read_and_change)
    assert later(tmp_path / "digests.json").sha256(file) == sha256("two")


def test_a_file_that_never_rests_is_an_error(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_change(path: Path, on_bytes: Callable[[int], None]) -> str:
        path.write_text(path.read_text() + "x")
        return sha256("")

    monkeypatch.setattr(files, "file_sha256", read_and_change)
    with pytest.raises(LLMServeError, match=r"weights changes again and again while it is read"):
        later(tmp_path / "digests.json").sha256(file)


def test_of_several_at_once_one_reads(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, waits = list[Path](), threading.Event()

    def read_when_others_wait(path: Path, on_bytes: Callable[[int], None]) -> str:
        reads.append(path)
        assert waits.wait(PATIENCE_SECONDS)
        return file_sha256(path, on_bytes)

    monkeypatch.setattr(files, "file_sha256", read_when_others_wait)
    found = list[str]()

    def ask() -> None:
        cache = later(tmp_path / "digests.json")
        found.append(cache.sha256_of_all([file], lambda text: waits.set())[file])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert (found, reads) == ([sha256("one")] * 2, [file])


def test_a_long_reading_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_REPORT_SECONDS", 0.0)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(bytes(5 << 20))
    said = list[str]()
    found = later(tmp_path / "digests.json").sha256_of_all(paths, said.append)
    assert set(found) == set(paths)
    assert len(said) == 6  # two pieces of each
    assert re.fullmatch(
        r"reading the model's files for their digest: 0\.0 of 0\.0 GB, \d+\.\d GB/s", said[-1]
    )


def test_it_is_taken_without_a_word_when_free(tmp_path: Path) -> None:
    said = list[str]()
    path = tmp_path / "deep" / "lock"
    for _ in range(2):
        with file_lock(path, said.append, "works", 0.0):
            assert path.exists()
    assert said == []


def test_it_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), file_lock(tmp_path / "lock", print, "works", 0.0):
        raise KeyError
    with file_lock(tmp_path / "lock", print, "works", 0.0):
        pass


def test_who_waits_says_so_once_and_gives_up_at_its_deadline(tmp_path: Path) -> None:
    said = list[str]()
    with (
        file_lock(tmp_path / "lock", print, "works", 0.0),
        pytest.raises(DeadlineExceeded, match="another process that converts x"),
        file_lock(tmp_path / "lock", said.append, "converts x", 0.25),
    ):
        pytest.fail("the lock was held")
    assert said == ["waiting for another process that converts x"]


def test_who_waits_gets_it_next(tmp_path: Path) -> None:
    waits, has = threading.Event(), threading.Event()

    def second() -> None:
        with file_lock(tmp_path / "lock", lambda text: waits.set(), "works", PATIENCE_SECONDS):
            has.set()

    thread = threading.Thread(target=second)
    with file_lock(tmp_path / "lock", print, "works", 0.0):
        thread.start()
        assert waits.wait(PATIENCE_SECONDS)
        assert not has.is_set()
    assert has.wait(PATIENCE_SECONDS)
    thread.join()
