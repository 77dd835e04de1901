"""Traces of requests: what is known of each, and how files of them are read."""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import DEFAULT_TENANT, AdapterDigest, TenantId
from llmserve.core.json_object import json_object


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """arrived_at: seconds from the start. max_output_tokens: the client's limit; 0 when there is none.
    prefix_names: a name for each run of run_tokens prompt tokens and all before it: equal names are equal
    prefixes. Tokens beyond the names belong to no other request. adapter: the version that it runs on."""

    arrived_at: float
    prompt_tokens: int
    output_tokens: int
    tenant: TenantId = DEFAULT_TENANT
    max_output_tokens: int = 0
    prefix_names: tuple[int, ...] = ()
    run_tokens: int = 512
    adapter: AdapterDigest = BASE_MODEL


# What one of Mooncake's hash_ids stands for.
_HASH_TOKENS = 512

NextTenant = Callable[[], TenantId]


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a file, which its errors name."""

    path: Path
    number: int

    def wrong(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"{self.path}:{self.number}: {what}")


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a CSV trace. seconds: reads the text of a time."""

    time: str
    prompt: str
    output: str
    seconds: Callable[[_Line, str | None], float]
    failed_have_no_output: bool = False


def read_trace(path: Path, tenant_of: NextTenant) -> list[TracedRequest]:
    """Yields requests in the order of arrival. tenant_of: gives the tenant of a request that names none.
    Errors: InvalidRequest, with file and line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            read = _table if path.suffix.lower() == ".csv" else _mooncake
            requests = list(read(path, file, tenant_of))
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: not UTF-8 text") from error
    if not requests:
        raise InvalidRequest(f"{path}: no requests in it")
    start = min(request.arrived_at for request in requests)
    moved = (replace(request, arrived_at=request.arrived_at - start) for request in requests)
    return sorted(moved, key=lambda request: request.arrived_at)


def at_speed(requests: list[TracedRequest], speed: float) -> list[TracedRequest]:
    """The same requests, this many times as fast after each other."""
    return [replace(request, arrived_at=request.arrived_at / speed) for request in requests]


def _mooncake(path: Path, file: Iterable[str], tenant_of: NextTenant) -> Iterator[TracedRequest]:
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        line = _Line(path, number)
        fields = _object(line, text)
        yield TracedRequest(
            arrived_at=_number(line, fields, "timestamp") / 1000,
            prompt_tokens=int(_number(line, fields, "input_length", least=1)),
            output_tokens=int(_number(line, fields, "output_length", least=1)),
            tenant=TenantId(str(fields["tenant"])) if fields.get("tenant") else tenant_of(),
            max_output_tokens=int(_number(line, fields, "max_tokens", default=0)),
            prefix_names=_names(line, fields.get("hash_ids", [])),
            run_tokens=_HASH_TOKENS,
        )


def _object(line: _Line, text: str) -> dict[str, Any]:
    try:
        return json_object(text)
    except ValueError as error:
        raise line.wrong(str(error)) from error


def _number(
    line: _Line, fields: dict[str, Any], name: str, *, least: float = 0, default: float | None = None
) -> float:
    value = fields.get(name, default)
    if value is None:
        raise line.wrong(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise line.wrong(f"{name} is {value!r}, not a number from {least:g} on")
    return value


def _names(line: _Line, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(name, int) for name in value):
        raise line.wrong("hash_ids is not a list of integers")
    return tuple(value)


def _table(path: Path, file: Iterable[str], tenant_of: NextTenant) -> Iterator[TracedRequest]:
    rows = csv.DictReader(file)
    columns = _columns(_Line(path, 1), rows.fieldnames or ())
    for row in rows:
        line = _Line(path, rows.line_num)
        output = _count(line, row[columns.output], least=0 if columns.failed_have_no_output else 1)
        if output:
            when = columns.seconds(line, row[columns.time])
            yield TracedRequest(when, _count(line, row[columns.prompt]), output, tenant_of())


def _columns(line: _Line, found: Iterable[str]) -> _Columns:
    """BurstGPT's columns if its name of the time is there, else Azure's."""
    columns = _BURSTGPT if _BURSTGPT.time in found else _AZURE
    wanted = (columns.time, columns.prompt, columns.output)
    if missing := [name for name in wanted if name not in found]:
        raise line.wrong(f"no column {', '.join(missing)}")
    return columns


def _date(line: _Line, text: str | None) -> float:
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError as error:
        raise line.wrong(f"TIMESTAMP is {text!r}, not a date and time") from error
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _seconds(line: _Line, text: str | None) -> float:
    try:
        seconds = float(text or "")
    except ValueError as error:
        raise line.wrong(f"Timestamp is {text!r}, not seconds") from error
    if not 0 <= seconds < float("inf"):
        raise line.wrong(f"Timestamp is {text!r}, not seconds")
    return seconds


def _count(line: _Line, text: str | None, *, least: int = 1) -> int:
    if not text or not text.strip().isdecimal() or int(text) < least:
        raise line.wrong(f"{text!r} is not a number of tokens from {least} on")
    return int(text)


_AZURE = _Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", _date)
_BURSTGPT = _Columns("Timestamp", "Request tokens", "Response tokens", _seconds, failed_have_no_output=True)
