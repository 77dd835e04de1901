"""Lines of a log: for people, or as JSON, with the process, and the request where one is at hand.

A line belongs to a request while its names are in the context: of the task, or of a `with` around
what is done for it.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class RequestNames:
    """request_id: as this process knows the request. trace_id: 32 hex digits; empty when tracing is off."""

    request_id: str
    trace_id: str = ""


_CURRENT: ContextVar[RequestNames | None] = ContextVar("llmserve-request-names", default=None)


def name_request(names: RequestNames) -> None:
    """For the rest of this task and the tasks that it makes."""
    _CURRENT.set(names)


@contextlib.contextmanager
def named(names: RequestNames) -> Iterator[None]:
    """Within it."""
    token = _CURRENT.set(names)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def levels_kept() -> Iterator[None]:
    """Around code that sets the levels of the root logger and its handlers, and must not."""
    root = logging.getLogger()
    level, levels = root.level, {handler: handler.level for handler in root.handlers}
    try:
        yield
    finally:
        root.setLevel(level)
        for handler, before in levels.items():
            handler.setLevel(before)


class HumanFormatter(logging.Formatter):
    """process: such as decode-0. A request that the message names itself is not named again."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process.replace('%', '%%')} %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging.Formatter
        line = super().formatMessage(record)
        names = _CURRENT.get()
        if names is None:
            return line
        if names.request_id not in record.message:
            line += f" request={names.request_id}"
        return f"{line} trace={names.trace_id}" if names.trace_id else line


class JsonFormatter(logging.Formatter):
    """One object in one line, whatever the message holds. Keys: time (RFC 3339, UTC), level, process, pid,
    logger, message; with a request: request_id, trace_id; with an exception: error (its class), stack.
    vLLM makes one by its name (vllm_logging)."""

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
        return json.dumps(line, ensure_ascii=False)

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
    """vLLM's logging (a dictConfig) as JSON: of its own loggers and, in its engine's processes, of all."""
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
