"""Log files: begun, appended to, kept short, their end read, followed."""

import os
from pathlib import Path

import pytest

from llmserve.core.errors import StartFailed
from llmserve.runner.logs import LogFollower, append_line, begin, begun, older, shorten, tail


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


def test_a_new_run_forgets_the_older_lines_of_the_last_one(log: Path) -> None:
    begin(log)
    append_line(log, "x" * 9)
    shorten(log, 5)
    append_line(log, "last")
    begin(log)
    assert not older(log).exists()
    assert log.with_name("router-0.previous.log").read_text() == "last\n"
    assert begun(log.parent) == ["router-0"]


def test_a_log_that_a_process_holds_open_is_kept_short(log: Path) -> None:
    begin(log)
    with log.open("ab", buffering=0) as held:
        for number in range(10):
            held.write(b"line %d\n" % number)
            shorten(log, 20)
            assert log.stat().st_size <= 20
        held.write(b"end\n")
    assert older(log).read_text() + log.read_text() == "line 6\nline 7\nline 8\nline 9\nend\n"
    assert begun(log.parent) == ["router-0"]


def test_a_log_without_room_for_a_second_file_is_emptied_all_the_same(log: Path) -> None:
    begin(log)
    log.write_text("x" * 99)
    log.with_name("router-0.1.new").symlink_to("/dev/full")
    shorten(log, 50)
    assert log.read_text() == ""
    assert not older(log).exists()
    shorten(log.with_name("none.log"), 50)


def test_all_that_is_there_is_read_and_then_what_is_new(log: Path) -> None:
    begin(log)
    log.write_text("one\ntw")
    shorten(log, 1)
    log.write_text("o\nthree\nfo")
    follower = LogFollower({"a": log})
    assert list(follower.written("a")) == ["one", "two", "three"]
    append_line(log, "ur")
    assert list(follower.new_lines()) == [("a", "four")]


def test_a_log_that_is_emptied_or_begun_anew_is_followed_on(log: Path) -> None:
    begin(log)
    follower = LogFollower({"a": log})
    log.write_text("first\n")
    assert [line for _, line in follower.new_lines()] == ["first"]
    append_line(log, "second")
    shorten(log, 1)
    append_line(log, "3")
    assert [line for _, line in follower.new_lines()] == ["second", "3"]
    begin(log)
    append_line(log, "of the next run, which is longer")
    assert [line for _, line in follower.new_lines()] == ["of the next run, which is longer"]


def test_what_is_emptied_while_it_is_read_is_not_missed(log: Path) -> None:
    begin(log)
    log.write_text("one\ntwo\n")
    shorten(log, 1)
    log.write_text("three\n")
    follower = LogFollower({"a": log})
    lines = follower.written("a")
    assert next(lines) == "one"
    shorten(log, 1)
    append_line(log, "four")
    assert list(lines) == ["two", "three", "four"]
    assert list(follower.new_lines()) == []


def test_only_a_newline_ends_a_line_and_a_progress_bar_is_shown_as_it_ended(log: Path) -> None:
    begin(log)
    follower = LogFollower({"a": log})
    text = "one\u2028two\x0bthree\x85\r\n10%\r50%\r100%\r\nend\n"
    lines = ["one\u2028two\x0bthree\x85", "100%", "end"]
    log.write_text(text, newline="")
    assert list(follower.written("a")) == lines
    with log.open("a", newline="") as file:
        file.write(text)
    assert [line for _, line in follower.new_lines()] == lines
    assert tail(log, 3) == lines


def test_a_log_that_was_emptied_and_has_grown_beyond_the_place_again(log: Path) -> None:
    begin(log)
    log.write_text("1\n")
    follower = LogFollower({"a": log})
    assert list(follower.written("a")) == ["1"]
    append_line(log, "2")
    shorten(log, 1)
    append_line(log, "this one is longer than all before it")
    lines = [line for _, line in follower.new_lines()]
    assert lines == ["2", "this one is longer than all before it"]


def test_a_line_that_was_cut_by_the_emptying_is_told_when_it_is_whole(log: Path) -> None:
    begin(log)
    log.write_text("one\nha")
    early = LogFollower({"a": log})
    assert list(early.written("a")) == ["one"]
    shorten(log, 1)
    late = LogFollower({"a": log})
    assert list(late.written("a")) == ["one"]
    assert list(early.new_lines()) == []
    append_line(log, "lf")
    assert list(early.new_lines()) == list(late.new_lines()) == [("a", "half")]


def test_who_looks_between_the_copying_and_the_emptying_is_told_nothing_twice(log: Path) -> None:
    begin(log)
    log.write_text("one\ntwo\n")
    follower = LogFollower({"a": log})
    assert list(follower.written("a")) == ["one", "two"]
    older(log).write_text("one\ntwo\n")
    append_line(log, "three")
    assert list(follower.new_lines()) == [("a", "three")]
    assert list(LogFollower({"a": log}).written("a")) == ["one", "two", "three"]
    older(log).write_text("one\ntwo\nthree\nfour\n")
    log.write_text("five\n")
    assert list(follower.new_lines()) == [("a", "four"), ("a", "five")]


def test_what_is_written_while_a_log_is_copied_is_kept(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(log)
    log.write_text("one\n")

    def late(source: Path, target: Path) -> None:
        append_line(log, "two")
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr("llmserve.runner.logs.os.replace", late)
    shorten(log, 1)
    assert (older(log).read_text(), log.read_text()) == ("one\ntwo\n", "")
