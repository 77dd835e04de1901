"""What the guard is told, and the files it removes. The end of processes: tests/integration/runner."""

import io
from pathlib import Path

import pytest

from llmserve.runner.guard import Remains, follow

MARK = "no-such-cluster/"


@pytest.fixture
def remains() -> Remains:
    return Remains(MARK)


def test_it_remembers_what_it_is_told(remains: Remains) -> None:
    lines = ["session 12", "session 13", "forget 12", "forget 99", "shm /dev/shm/a b", "dir /t", "state /s"]
    follow(io.BytesIO("\n".join([*lines, "a word of tomorrow", ""]).encode()), remains)
    assert remains.sessions == {13}
    assert remains.shared_memory == {"/dev/shm/a b"}
    assert (remains.folders, remains.state_files) == ({"/t"}, {"/s"})


def test_a_line_cut_short_is_left_out(remains: Remains) -> None:
    follow(io.BytesIO(b"session 12\nsession 1"), remains)
    assert remains.sessions == {12}


def test_its_own_files_are_removed_and_nothing_twice(remains: Remains, tmp_path: Path) -> None:
    folder, ours, next_one = tmp_path / "temp", tmp_path / "ours.json", tmp_path / "next.json"
    (folder / "deep").mkdir(parents=True)
    ours.write_text('{"cluster_id": "no-such-cluster"}')
    next_one.write_text('{"cluster_id": "another"}')
    lines = f"dir {folder}\nstate {ours}\nstate {next_one}\nstate {tmp_path}/none\nshm {tmp_path}/none\n"
    follow(io.BytesIO(lines.encode()), remains)
    for _ in range(2):
        remains.clear()
        assert [path.name for path in tmp_path.iterdir()] == ["next.json"]
