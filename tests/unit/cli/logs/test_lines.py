"""Lines of several logs: their times, their order, which of them are wanted."""

from datetime import UTC, datetime

import pytest

from llmserve.cli.logs.lines import LogLine, Timed, chosen, from_on, last, merged, parse_since, time_of
from llmserve.core.errors import InvalidRequest, NotFound

NOW = datetime(2026, 1, 2, 12, 0, 0)


def at(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0, micro: int = 0
) -> float:
    return datetime(year, month, day, hour, minute, second, micro).timestamp()


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-01-02 11:59:58,250 INFO llmserve.x: ready", at(2026, 1, 2, 11, 59, 58, 250_000)),
        ('{"time": "2026-01-02T11:59:58.250", "level": "info"}', at(2026, 1, 2, 11, 59, 58, 250_000)),
        (
            '{"level":"info","ts":"2026-01-02T11:59:58Z"}',
            datetime(2026, 1, 2, 11, 59, 58, tzinfo=UTC).timestamp(),
        ),
        (
            "2026-01-02T11:59:58.123456789Z x",
            datetime(2026, 1, 2, 11, 59, 58, 123_456, tzinfo=UTC).timestamp(),
        ),
        ("2026-01-02T12:59:58+01:00 x", datetime(2026, 1, 2, 11, 59, 58, tzinfo=UTC).timestamp()),
        ("INFO 01-02 11:59:58 [core.py:1] vLLM's", at(2026, 1, 2, 11, 59, 58)),
        (
            "(EngineCore_DP0 pid=7) WARNING 12-31 23:59:58 [core.py:1] of last year",
            at(2025, 12, 31, 23, 59, 58),
        ),
    ],
)
def test_times_of_all_who_write(text: str, when: float) -> None:
    assert time_of(text, NOW) == pytest.approx(when)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback (most recent call last):",
        "  at 2026-01-02 11:59:58 nothing happened",
        "2026-13-02 11:59:58 no such month",
        "INFO 02-31 11:59:58 [x.py:1] no such day",
        "INFO:     127.0.0.1:5000 - GET",
    ],
)
def test_lines_without_a_time(text: str) -> None:
    assert time_of(text, NOW) is None


def timed(process: str, *texts: str) -> list[LogLine]:
    clock = Timed(process, NOW)
    return [clock.line(text) for text in texts]


def test_logs_are_merged_by_time_and_a_traceback_stays_together() -> None:
    one = timed("a", "warning, at import", "2026-01-02 10:00:01,0 failed", "Traceback", "  boom")
    two = timed("b", "2026-01-02 10:00:00,5 b", "2026-01-02 10:00:01,5 b")
    assert [f"{line.process} {line.text[-9:].strip()}" for line in merged([one, two])] == [
        "a at import",
        "b 00:00,5 b",
        "a ,0 failed",
        "a Traceback",
        "a boom",
        "b 00:01,5 b",
    ]


def test_a_clock_that_was_set_back_changes_no_order() -> None:
    lines = timed("a", "2026-01-02 10:00:05,0 first", "2026-01-02 10:00:01,0 second")
    assert lines[0].at == lines[1].at


def test_the_last_ones_and_those_from_a_time_on() -> None:
    assert list(last("abc", 2)) == ["b", "c"]
    assert list(last("abc", 0)) == []
    assert list(last("abc", None)) == ["a", "b", "c"]
    lines = timed("a", "untimed", "2026-01-02 10:00:00,0 old", "2026-01-02 10:00:05,0 new", "  more of it")
    since = at(2026, 1, 2, 10, 0, 1)
    assert [line.text[-5:] for line in from_on(lines, since)] == ["0 new", "of it"]
    assert list(from_on(lines, None)) == lines


def test_since_when() -> None:
    now = NOW.timestamp()
    for text, seconds in (("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172800)):
        assert parse_since(text, NOW) == now - seconds
    assert parse_since("2026-01-02T11:00", NOW) == now - 3600
    for wrong in ("", "10", "10 m", "yesterday"):
        with pytest.raises(InvalidRequest, match="--since"):
            parse_since(wrong, NOW)


def test_which_processes() -> None:
    names = ["model", "router-0", "decode-0", "decode-10"]
    assert chosen(names, None) == names
    assert chosen(names, "decode") == ["decode-0", "decode-10"]
    assert chosen(names, "decode-10") == ["decode-10"]
    assert chosen(names, "model") == ["model"]
    with pytest.raises(
        NotFound, match="no process or role is called decod; there are: model, router-0, decode-0"
    ):
        chosen(names, "decod")
    with pytest.raises(NotFound, match="no process has a log; there are: none"):
        chosen([], None)


def test_which_processes_of_several_models() -> None:
    names = ["large-decode-0", "large-decode-1", "small-v2-decode-0", "router-0"]
    assert chosen(names, "decode") == names[:3]
    assert chosen(names, "large-decode") == names[:2]
    assert chosen(names, "small-v2-decode-0") == names[2:3]
    with pytest.raises(NotFound, match="no process or role is called large"):
        chosen(names, "large")
