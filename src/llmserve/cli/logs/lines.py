"""Joins the lines of several logs: by time, by process, from a time on, the last ones. Pure."""

import heapq
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from llmserve.core.errors import InvalidRequest, NotFound

# Ours, as text or as JSON, and whatever else begins with a date and a time.
_DATED = re.compile(
    r'(?:\{.{0,80}?")?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?)(?!\d)'
)
# vLLM's, which do not say the year: `(EngineCore pid=7) INFO 11-21 09:05:00 [core.py:1] ...`
_YEARLESS = re.compile(r"(?:\([^)]*\) )?[A-Z]+ (\d\d-\d\d \d\d:\d\d:\d\d) ")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DAY = timedelta(days=1)

_Line = TypeVar("_Line")


@dataclass(frozen=True, slots=True)
class LogLine:
    """at: Unix time; -inf: before the first time in its log."""

    at: float
    process: str
    text: str


class Timed:
    """Gives the lines of a process their times. A line without a time (of a traceback, say) gets that of
    the line before it, so that it stays there. A clock that was set back does not change the order."""

    def __init__(self, process: str, now: datetime) -> None:
        """now: local time; it decides the year of lines that have none."""
        self._process, self._now = process, now
        self._at = float("-inf")

    def line(self, text: str) -> LogLine:
        at = time_of(text, self._now)
        if at is not None:
            self._at = max(at, self._at)
        return LogLine(self._at, self._process, text)


def time_of(text: str, now: datetime) -> float | None:
    """Returns the Unix time at which a line was written; None: it has no time. A time without a zone is
    local."""
    try:
        if match := _DATED.match(text):
            return datetime.fromisoformat(match[1]).timestamp()
        if match := _YEARLESS.match(text):
            return _this_year(match[1], now).timestamp()
    except ValueError:  # the 31st of February
        return None
    return None


def _this_year(text: str, now: datetime) -> datetime:
    """A date that would be in the future is one of the last year."""
    found = datetime.fromisoformat(f"{now.year}-{text}")
    return found if found <= now + _DAY else found.replace(year=now.year - 1)


def merged(logs: Iterable[Iterable[LogLine]]) -> Iterator[LogLine]:
    """Yields all lines by time; lines of one log stay in their order. Reads them as it goes."""
    return heapq.merge(*logs, key=lambda line: line.at)


def last(lines: Iterable[_Line], count: int | None) -> Iterable[_Line]:
    """count: None: all lines."""
    return lines if count is None else deque(lines, maxlen=count)


def from_on(lines: Iterable[LogLine], since: float | None) -> Iterator[LogLine]:
    """Yields the lines of Unix time `since` or later. None: all lines."""
    return (line for line in lines if since is None or line.at >= since)


def parse_since(text: str, now: datetime) -> float:
    """Returns the Unix time of `90s`, `10m`, `2h`, `1d` ago, or of a date and time. Errors:
    InvalidRequest."""
    if match := _SPAN.fullmatch(text):
        return now.timestamp() - float(match[1]) * _UNIT_SECONDS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidRequest(f"--since {text}: write 90s, 10m, 2h, 1d, or 2026-01-31T09:00:00") from None


def chosen(names: Sequence[str], wanted: str | None) -> list[str]:
    """Returns the processes of a role (`decode`), those of a model (`small-decode`), or one process
    (`decode-1`). None: all. Errors: NotFound, with what there is."""
    found = [name for name in names if wanted in (None, name, _role(name), _role(name).rpartition("-")[2])]
    if not found:
        there = ", ".join(names) or "none"
        what = f"no process or role is called {wanted}" if wanted else "no process has a log"
        raise NotFound(f"{what}; there are: {there}")
    return found


def _role(name: str) -> str:
    role, _, number = name.rpartition("-")
    return role if number.isdecimal() else name
