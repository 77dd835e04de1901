"""The lock between processes. Two file descriptions in one process exclude each other as two processes do."""

import threading
from pathlib import Path

import pytest

from llmserve.core.errors import DeadlineExceeded
from llmserve.models.files import file_lock

PATIENCE_SECONDS = 20.0


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
