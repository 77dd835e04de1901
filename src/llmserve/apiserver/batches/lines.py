"""The lines of a batch: read from its input file, and written to its output and error files. Pure."""

import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass
from typing import Any

# What a batch may be of, where it is served.
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_FIRST_ERROR_STATUS = 400
_TOO_LONG = b"\n"  # stands for a line that was not kept; no line has its end within
_LONGEST_ID = _LONGEST_MODEL = 512
_LONGEST_SHOWN = 200  # of a value that is wrong
_SURROGATE = re.compile("[\ud800-\udfff]")
# What the answer to a line would not be.
_REFUSED = {
    "stream": "a batch has no streams: leave it out",
    "background": "a batch runs in the background already: leave it out",
}


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request. number: that of its line, from 1. body: JSON."""

    number: int
    custom_id: str
    model: str
    body: bytes


@dataclass(frozen=True, slots=True)
class LineProblem:
    """A line that is no request. custom_id: None when it has none."""

    number: int
    code: str
    message: str
    custom_id: str | None = None


@dataclass(frozen=True, slots=True)
class LineResult:
    """What became of a line. text: its line in the output or error file, with the line's end. answer: the
    body of a success; None for a failure."""

    number: int
    text: bytes
    answer: dict[str, Any] | None


async def numbered_lines(
    pieces: AsyncIterable[bytes], most_bytes: int = sys.maxsize
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yields the lines of a file that are not blank, each with its number from 1. most_bytes: longer lines
    are not kept; LineReader refuses what stands for them."""
    number, line = 0, bytearray()
    async for piece in pieces:
        first, *others = piece.split(b"\n")
        line += first
        for start in others:
            number += 1
            if text := _kept(line, most_bytes):
                yield number, text
            line = bytearray(start)
        del line[most_bytes + 1 :]  # what is left is still too long
    if text := _kept(line, most_bytes):
        yield number + 1, text


def _kept(line: bytearray, most_bytes: int) -> bytes:
    """Returns nothing of a blank line."""
    if len(line) > most_bytes:
        return _TOO_LONG
    return bytes(line) if line.strip() else b""


class LineReader:
    """Reads the lines of one file in order, and remembers their ids: each may occur once."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._first: dict[str, int] = {}

    def read(self, number: int, text: bytes) -> BatchLine | LineProblem:
        if text == _TOO_LONG:
            return LineProblem(number, "invalid_json_line", f"line {number} is longer than a request may be")
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            return LineProblem(number, "invalid_json_line", f"line {number} is no JSON: {error}")
        if not isinstance(fields, dict):
            return LineProblem(number, "invalid_request", f"line {number} is no JSON object")
        custom_id = fields.get("custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID:
            message = f"line {number}: custom_id must be a text of 1 to {_LONGEST_ID} characters"
            return LineProblem(number, "missing_required_parameter", message)
        if (problem := self._problem(number, custom_id, fields)) is not None:
            return problem
        body = fields["body"]
        return BatchLine(number, custom_id, body.get("model") or "", json.dumps(body).encode())

    def _problem(self, number: int, custom_id: str, fields: dict[str, Any]) -> LineProblem | None:
        first = self._first.setdefault(custom_id, number)
        if first != number:
            message = f"line {number}: custom_id {custom_id!r} is that of line {first}, too"
            return LineProblem(number, "duplicate_custom_id", message, custom_id)
        for wrong in self._wrong(fields):
            return LineProblem(number, "invalid_request", f"line {number}: {wrong}", custom_id)
        return None

    def _wrong(self, fields: dict[str, Any]) -> list[str]:
        wrong = []
        if fields.get("method") != "POST":
            wrong.append(f"method must be POST, got {_shown(fields.get('method'))}")
        if fields.get("url") != self._endpoint:
            wrong.append(
                f"url must be the batch's endpoint, {self._endpoint}, got {_shown(fields.get('url'))}"
            )
        body = fields.get("body")
        if not isinstance(body, dict):
            wrong.append("body must be a JSON object")
        else:
            wrong += [f"body.{name}: {why}" for name, why in _REFUSED.items() if body.get(name)]
            if not _may_be_model(body.get("model")):
                wrong.append(f"body.model must be a text of up to {_LONGEST_MODEL} characters")
        return wrong


def _shown(value: object) -> str:
    return repr(value)[:_LONGEST_SHOWN]


def _may_be_model(name: object) -> bool:
    """Returns whether a batch can have the model's name in it. JSON's text may be none of Unicode."""
    if name is None:
        return True
    return isinstance(name, str) and len(name) <= _LONGEST_MODEL and not _SURROGATE.search(name)


# -- results

_PREFIX = "batch_req_"


def request_name(batch_id: str, number: int) -> str:
    """Returns the id of a line's request, by which `explain` finds it."""
    return f"{_PREFIX}{batch_id.removeprefix('batch_')}_{number}"


def answered(batch_id: str, line: BatchLine, status: int, body: bytes) -> LineResult:
    """The result of a line that was answered, with whatever status."""
    try:
        content = json.loads(body)
    except ValueError:
        content = body.decode("utf-8", "replace")
    name = request_name(batch_id, line.number)
    response = {"status_code": status, "request_id": name, "body": content}
    is_success = status < _FIRST_ERROR_STATUS and isinstance(content, dict)
    return _result(batch_id, line.number, line.custom_id, response, None, content if is_success else None)


def not_answered(batch_id: str, problem: LineProblem) -> LineResult:
    """Returns the result of a line that was never sent, or gave no answer."""
    error = {"code": problem.code, "message": problem.message, "line": problem.number}
    return _result(batch_id, problem.number, problem.custom_id, None, error, None)


def expired(batch_id: str, line: BatchLine) -> LineResult:
    message = "This request could not be executed before the completion window expired."
    return not_answered(batch_id, LineProblem(line.number, "batch_expired", message, line.custom_id))


def _result(
    batch_id: str,
    number: int,
    custom_id: str | None,
    response: dict[str, Any] | None,
    error: dict[str, Any] | None,
    answer: dict[str, Any] | None,
) -> LineResult:
    name = request_name(batch_id, number)
    entry = {"id": name, "custom_id": custom_id, "response": response, "error": error}
    return LineResult(number, json.dumps(entry).encode() + b"\n", answer)


def parse_result(text: bytes) -> LineResult | None:
    """Reads what was written. Returns None for what is not whole."""
    try:
        entry = json.loads(text)
        number = int(entry["id"].rpartition("_")[2])
        response = entry["response"]
        is_success = response is not None and response["status_code"] < _FIRST_ERROR_STATUS
        answer = response["body"] if is_success else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return LineResult(number, text.rstrip(b"\n") + b"\n", answer)
