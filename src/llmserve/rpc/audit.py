"""The audit log: a line of JSON for each administrative call, and for each call that was refused.

A line says who asked for what, when, and with which result. It holds neither keys nor contents of requests.
Refusals have files of their own, so that whoever is refused again and again pushes none of the calls out.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
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
        about = {name: value for name, value in entry.about.items() if name not in entry.who}
        given = {**entry.who, "what": entry.what, **about, "result": entry.result}
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
# The fields of requests that say what a call is for. All others may hold secrets, as manifests do.
_ABOUT = frozenset(
    {
        *("worker_id", "name", "model", "source", "swap", "tier", "pin", "prefetch", "implicit", "wait"),
        *("drain", "timeout_seconds", "file", "seconds", "tenant", "hash_prefix", "unpin", "share"),
        *("lora_name", "lora_path", "pinned", "model_id", "custom_model_id"),  # of HTTP alone
    }
)
_PARTS = frozenset({"order", "filter"})  # messages inside
_ENTRY = "entry"  # of a model, as JSON


def is_administrative(method: str) -> bool:
    """Returns whether the method changes the cluster for an operator. method: `/PACKAGE.SERVICE/METHOD`."""
    return method in _ADMINISTRATIVE


def call_ended(method: str, request: Any, context: Any, result: str = "ok") -> None:
    """Records a call if it is administrative, and not only a question. request: that of a stream says
    nothing."""
    if is_administrative(method) and not getattr(request, "only_check", False):
        record_call(AuditEntry(method, result, _who(context), dict(_about(request))))


def _about(request: Any) -> Iterator[tuple[str, str]]:
    """request: a message; anything else says nothing."""
    for field, value in getattr(request, "ListFields", tuple)():
        if field.name in _PARTS:
            yield from _about(value)
        elif field.name == _ENTRY:
            yield from named_in(value).items()
        elif field.name in _ABOUT:
            yield (
                field.name,
                field.enum_type.values_by_number[value].name if field.enum_type else _word(value),
            )


def named_in(text: str | bytes) -> dict[str, str]:
    """Returns what the fields of a JSON object say that a call is for. Text of another kind says nothing."""
    try:
        fields = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    given = fields.items() if isinstance(fields, dict) else ()
    return {name: _word(value) for name, value in given if name in _ABOUT and isinstance(value, str | bool)}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
