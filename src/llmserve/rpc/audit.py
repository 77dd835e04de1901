"""The audit log: a line of JSON for each administrative call, and for each call that was refused.

A line says who asked for what, when, and with which result. It holds neither keys nor contents of requests.
Refusals have files of their own, so that whoever is refused again and again pushes none of the calls out.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from llmserve.core.errors import Forbidden, LLMServeError, NotAuthenticated, StartFailed
from llmserve.core.logs import printable
from llmserve.rpc.credentials import shown_by

_CALLS = logging.getLogger(f"{__name__}.calls")
_REFUSALS = logging.getLogger(f"{__name__}.refusals")
_OLDER_FILES = 4
_LONGEST = 300  # of a value: paths and names are the client's


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """what: a method and a path, or the name of a gRPC method. result: a status. who: what is known of the
    caller. about: what the call is for."""

    what: str
    result: str
    who: Mapping[str, str]
    about: Mapping[str, str]


def record_call(entry: AuditEntry) -> None:
    """Records a call that changed the cluster, or was to."""
    _write(_CALLS, entry)


def record_refusal(entry: AuditEntry) -> None:
    """Records a call that was refused because of who asked, or how often."""
    _write(_REFUSALS, entry)


def _write(to: logging.Logger, entry: AuditEntry) -> None:
    if to.isEnabledFor(logging.INFO):
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        given = {**entry.who, "what": entry.what, **entry.about, "result": entry.result}
        line = {name: printable(value)[:_LONGEST] for name, value in given.items() if value}
        to.info("%s", json.dumps({"time": at, **line}, ensure_ascii=False))


def open_audit(folder: Path | None, process: str, most_bytes: int, *, on: bool) -> None:
    """Writes the lines of this process to `audit-PROCESS.jsonl` and `refusals-PROCESS.jsonl` in a folder,
    each with at most this size and four older files. folder: None: to the log. Errors: StartFailed."""
    for name, logger in (("audit", _CALLS), ("refusals", _REFUSALS)):
        logger.setLevel(logging.INFO if on else logging.CRITICAL)
        if on and folder is not None:
            for before in logger.handlers:
                before.close()
            logger.propagate = False
            logger.handlers[:] = [_handler(folder / f"{name}-{process}.jsonl", most_bytes)]


def _handler(path: Path, most_bytes: int) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _PrivateFile(path, maxBytes=most_bytes, backupCount=_OLDER_FILES, encoding="utf-8")
    except OSError as error:
        raise StartFailed(f"{path}: cannot be used as audit log: {error.strerror}") from error


class _PrivateFile(RotatingFileHandler):
    """A file that only this user can read."""

    def _open(self) -> TextIOWrapper:
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return os.fdopen(fd, "a", encoding=self.encoding)


# -- calls between processes

_PACKAGE = "/llmserve.v1"
_ADMINISTRATIVE = frozenset(
    {
        *(f"{_PACKAGE}.Router/{name}" for name in ("Drain", "Reload")),
        *(f"{_PACKAGE}.Router/{name}" for name in ("LoadAdapter", "UnloadAdapter", "KeepAdapter")),
        *(f"{_PACKAGE}.Router/{name}" for name in ("LoadModel", "UnloadModel")),
        f"{_PACKAGE}.Worker/Profile",
        *(f"{_PACKAGE}.KVManager/{name}" for name in ("PinBlocks", "EvictBlocks")),
        *(f"{_PACKAGE}.KVManager/{name}" for name in ("VerifyBlocks", "ExportBlocks", "ImportBlocks")),
    }
)
# The fields of requests that say what a call is for.
_ABOUT = ("worker_id", "name", "model", "swap")


def is_administrative(method: str) -> bool:
    """Returns whether the method changes the cluster for an operator. method: `/PACKAGE.SERVICE/METHOD`."""
    return method in _ADMINISTRATIVE


def call_ended(method: str, request: Any, context: Any, result: str = "ok") -> None:
    """Records a call if it is administrative, and not only a question. request: that of a stream says
    nothing."""
    if is_administrative(method) and not getattr(request, "only_check", False):
        given = ((name, getattr(request, name, "")) for name in _ABOUT)
        about = {name: value for name, value in given if isinstance(value, str)}
        record_call(AuditEntry(method, result, _who(context), about))


def call_failed(method: str, context: Any, error: LLMServeError) -> None:
    """Records a call that was refused because of who called. method: empty when it is not known here."""
    if isinstance(error, NotAuthenticated | Forbidden):
        about = {"why": error.message}
        record_refusal(AuditEntry(method, type(error).__name__, _who(context), about))


def _who(context: Any) -> dict[str, str]:
    """Returns what the caller says of itself, which is proven unless the call was refused."""
    caller = shown_by(context.invocation_metadata())
    said = {"role": caller.role.value, "caller": caller.name} if caller else {}
    return {**said, "address": context.peer()}
