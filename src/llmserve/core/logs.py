"""Formats of log lines: for people, or as JSON, with the process, and with the request where there is one.

A line belongs to a request while the request's names are in the context of the task, or of a `with` around
the work for it. Any message may hold what clients wrote: no line of it looks like a line of another
record, and nothing in it moves a terminal's cursor.
"""

import contextlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_SCARCE_SECONDS = 1.0
# Control characters except tab and newline, what turns the direction of text, other line ends, and halves of
# surrogate pairs, which no log can be written with.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Returns the text with everything invisible replaced by an escape of JSON and Python: `\\u001b`."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _OneASecond:
    """Any thread. now: seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._lock = now, threading.Lock()
        self._next, self._unwritten = now(), 0

    def note(self) -> str | None:
        """Returns what ends a line that may be written now: how many were not; None: it may not."""
        with self._lock:
            if (now := self._now()) < self._next:
                self._unwritten += 1
                return None
            self._next = now + _SCARCE_SECONDS
            unwritten, self._unwritten = self._unwritten, 0
        return f" (and {unwritten} such lines before)" if unwritten else ""


class ScarceWarnings:
    """Warnings of which anybody can cause as many as they like. One a second is written, with the number of
    those that were not. Any thread. log: where to. now: seconds."""

    def __init__(self, log: logging.Logger, now: Callable[[], float] = time.monotonic) -> None:
        self._log, self._limit = log, _OneASecond(now)

    def warning(self, message: str, *values: object) -> None:
        if (note := self._limit.note()) is not None:
            self._log.warning(f"{message}%s", *values, note)


class ScarceRecords(logging.Filter):
    """As ScarceWarnings, for those that a library writes: a filter for its logger. What is worse than a
    warning passes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._limit = _OneASecond(now)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.WARNING:
            return True
        if (note := self._limit.note()) is None:
            return False
        record.msg, record.args = f"{record.getMessage()}{note}", None
        return True


class KnownFailures(logging.Filter):
    """A filter for a handler. It turns a library's record of a failure that is no defect into one line, a
    warning without its traceback, and makes the library's messages printable. library: its logger.
    is_known: says whether an exception is such a failure."""

    def __init__(self, library: str, is_known: Callable[[BaseException], bool]) -> None:
        super().__init__(library)
        self._is_known = is_known

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True  # somebody else's: as it is
        message = record.getMessage().rstrip()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and self._is_known(error):
            message = message if str(error) in message else f"{message} {error}"
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = printable(message), None
        return True


@dataclass(frozen=True, slots=True)
class RequestNames:
    """request_id: the request's name in this process. trace_id: 32 hex digits; empty when tracing is off."""

    request_id: str
    trace_id: str = ""


_INDENT = "    "
_CURRENT: ContextVar[RequestNames | None] = ContextVar("llmserve-request-names", default=None)


def name_request(names: RequestNames) -> None:
    """Sets the names for the rest of this task and the tasks that it makes."""
    _CURRENT.set(names)


@contextlib.contextmanager
def named(names: RequestNames) -> Iterator[None]:
    """Sets the names within the `with`."""
    token = _CURRENT.set(names)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def levels_kept() -> Iterator[None]:
    """Keeps the levels of the root logger and its handlers, around code that would change them."""
    root = logging.getLogger()
    level, levels = root.level, {handler: handler.level for handler in root.handlers}
    try:
        yield
    finally:
        root.setLevel(level)
        for handler, before in levels.items():
            handler.setLevel(before)


class HumanFormatter(logging.Formatter):
    """process: such as decode-0. A request that the message names itself is not named again. Lines after
    the first are indented, so that none of them looks like a record of its own."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process.replace('%', '%%')} %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", f"\n{_INDENT}")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging.Formatter
        line = super().formatMessage(record)
        names = _CURRENT.get()
        if names is None:
            return line
        if names.request_id not in record.message:
            line += f" request={names.request_id}"
        return f"{line} trace={names.trace_id}" if names.trace_id else line


class JsonFormatter(logging.Formatter):
    """Writes one object in one line, whatever the message holds. Keys: time (RFC 3339, UTC), level,
    process, pid, logger, message; with a request: request_id, trace_id; with an exception: error (its
    class), stack. vLLM makes one by its name (vllm_logging)."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
            **self._request(),
            **self._error(record),
        }
        return printable(json.dumps(line, ensure_ascii=False))

    def _request(self) -> Mapping[str, str]:
        names = _CURRENT.get()
        if names is None:
            return {}
        return {"request_id": names.request_id, **({"trace_id": names.trace_id} if names.trace_id else {})}

    def _error(self, record: logging.LogRecord) -> Mapping[str, str]:
        if not record.exc_info or record.exc_info[0] is None:
            return {}
        return {"error": record.exc_info[0].__name__, "stack": self.formatException(record.exc_info)}


def vllm_logging(process: str, level: str) -> Mapping[str, Any]:
    """Returns vLLM's logging (a dictConfig) as JSON: for its own loggers and, in the processes of its
    engine, for all."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.{JsonFormatter.__name__}", "process": process}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "json"}
        },
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {"vllm": {"handlers": [], "propagate": True, "level": level}},
    }
