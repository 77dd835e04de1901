"""Log files: begun, appended to, their end read, followed."""

from pathlib import Path

import pytest

from llmserve.core.errors import StartFailed
from llmserve.runner.logs import LogFollower, append_line, begin, tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "router-0.log"


def test_a_run_begins_with_an_empty_log_and_keeps_the_last_one(log: Path) -> None:
    previous = log.with_name("router-0.previous.log")
    begin(log)
    assert (log.read_text(), previous.exists()) == ("", False)
    for text in ("one", "two"):
        append_line(log, text)
        begin(log)
        assert (log.read_text(), previous.read_text()) == ("", f"{text}\n")


def test_a_place_for_logs_that_cannot_be_used_is_said(log: Path) -> None:
    log.parent.touch()
    with pytest.raises(StartFailed, match=r"router-0\.log: cannot be used as log file"):
        begin(log)


def test_a_line_that_cannot_be_written_stops_nothing(log: Path) -> None:
    append_line(log, "x")
    assert not log.exists()
    append_line(Path("/dev/full"), "x")


def test_the_tail(log: Path) -> None:
    assert tail(log, 3) == []
    begin(log)
    assert tail(log, 3) == []
    log.write_bytes(b"one\ntwo\n\xff three\nfour")
    assert tail(log, 3) == ["two", "\N{REPLACEMENT CHARACTER} three", "four"]
    assert len(tail(log, 99)) == 4


def test_the_tail_of_a_large_file_is_its_end(log: Path) -> None:
    begin(log)
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert tail(log, 2) == ["line 99998", "line 99999"]


def test_followed_are_whole_lines_once(tmp_path: Path) -> None:
    one, two = tmp_path / "1.log", tmp_path / "2.log"
    follower = LogFollower({"one": one, "two": two})
    assert list(follower.new_lines()) == [], "a log may not be there yet"
    one.write_text("a\nb")
    two.write_text("c\n")
    assert list(follower.new_lines()) == [("one", "a"), ("two", "c")]
    assert list(follower.new_lines()) == []
    append_line(one, "b")
    assert list(follower.new_lines()) == [("one", "bb")]
