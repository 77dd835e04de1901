"""The lines of input files, and those of results."""

import json
from typing import Any

import pytest

from llmserve.apiserver.batches.lines import (
    BatchLine,
    LineProblem,
    LineReader,
    LineResult,
    answered,
    expired,
    not_answered,
    numbered_lines,
    parse_result,
)
from tests.integration.apiserver.batches.conftest import CHAT, line, pieces

BATCH = "batch_" + "0" * 32
NAME = "batch_req_" + "0" * 32


async def _numbered(*texts: bytes, most_bytes: int = 100) -> list[tuple[int, bytes]]:
    return [one async for one in numbered_lines(pieces(*texts), most_bytes)]


async def test_lines_are_numbered_whatever_the_pieces() -> None:
    expected = [(1, b"a"), (3, b"bc"), (4, b"d")]
    text = b"a\n \nbc\nd"
    assert await _numbered(text) == await _numbered(*(text[i : i + 1] for i in range(len(text)))) == expected
    assert await _numbered(text + b"\n\n") == expected
    assert await _numbered(b"") == await _numbered(b"\n", b"\n") == []
    assert await _numbered(b"a\r\nb") == [(1, b"a\r"), (2, b"b")]


@pytest.mark.parametrize("piece_bytes", [1, 5, 1000])
async def test_a_line_that_is_too_long_is_refused_alone(piece_bytes: int) -> None:
    text = b"\n".join([b"a", b"x" * 12, b"b" * 10, b"y" * 11, b"\0", b"z" * 11])
    parts = [text[start : start + piece_bytes] for start in range(0, len(text), piece_bytes)]
    found = dict(await _numbered(*parts, most_bytes=10))
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert (found[1], found[3], found[5]) == (b"a", b"b" * 10, b"\0")
    for number in (2, 4, 6):
        assert len(found[number]) < 10, "it is not kept in memory"
        problem = LineReader(CHAT).read(number, found[number])
        message = f"line {number} is longer than a request may be"
        assert problem == LineProblem(number, "invalid_json_line", message)


def test_a_right_line() -> None:
    read = LineReader(CHAT).read(7, line("a", unknown=1))
    assert isinstance(read, BatchLine)
    assert (read.number, read.custom_id, read.model) == (7, "a", "m")
    assert json.loads(read.body) == {"model": "m", "prompt": "a"}


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (b"{", "invalid_json_line", "line 2 is no JSON"),
        (b"\xff", "invalid_json_line", "line 2 is no JSON"),
        (b"[" * 100_000, "invalid_json_line", "line 2 is no JSON"),
        (b"[1]", "invalid_request", "no JSON object"),
        (b"{}", "missing_required_parameter", "custom_id"),
        (line("a", custom_id=1), "missing_required_parameter", "custom_id"),
        (line("a", custom_id=""), "missing_required_parameter", "custom_id"),
        (line("x" * 513), "missing_required_parameter", "512"),
        (line("a", method="GET"), "invalid_request", "method must be POST, got 'GET'"),
        (line("a", url="/v1/completions"), "invalid_request", "url must be the batch's endpoint"),
        (line("a", body="x"), "invalid_request", "body must be a JSON object"),
        (line("a", body={"stream": True}), "invalid_request", "body.stream: a batch has no streams"),
        (line("a", body={"background": True}), "invalid_request", "body.background"),
        (line("a", body={"model": 1}), "invalid_request", "body.model must be a text of up to 512"),
        (line("a", body={"model": "m" * 513}), "invalid_request", "body.model must be a text of up to 512"),
        (line("a", body={"model": "\ud800"}), "invalid_request", "body.model must be a text of up to 512"),
        (line("first"), "duplicate_custom_id", "'first' is that of line 1, too"),
    ],
)
def test_wrong_lines(text: bytes, code: str, words: str) -> None:
    reader = LineReader(CHAT)
    assert isinstance(reader.read(1, line("first")), BatchLine)
    problem = reader.read(2, text)
    assert isinstance(problem, LineProblem)
    assert (problem.number, problem.code) == (2, code)
    assert words in problem.message


def test_what_is_wrong_is_not_repeated_at_any_length() -> None:
    problem = LineReader(CHAT).read(1, line("a", url="x" * 100_000, method=["y" * 100_000]))
    assert isinstance(problem, LineProblem)
    assert len(problem.message) < 1000


def test_fields_that_say_nothing_are_right() -> None:
    read = LineReader(CHAT).read(1, line("a", body={"stream": False, "model": None}))
    assert isinstance(read, BatchLine)
    assert read.model == ""


def _row(result: LineResult) -> dict[str, Any]:
    assert result.text.endswith(b"\n")
    assert parse_result(result.text) == result  # what was written is read as it was
    row: dict[str, Any] = json.loads(result.text)
    return row


def test_results() -> None:
    one = BatchLine(3, "a", "m", b"{}")
    good = answered(BATCH, one, 200, b'{"x": 1}')
    response = {"status_code": 200, "request_id": f"{NAME}_3", "body": {"x": 1}}
    assert _row(good) == {"id": f"{NAME}_3", "custom_id": "a", "response": response, "error": None}
    assert good.answer == {"x": 1}
    bad = answered(BATCH, one, 400, b'{"error": 1}')
    assert (_row(bad)["response"]["status_code"], bad.answer) == (400, None)
    assert answered(BATCH, one, 399, b"{}").answer == {}
    torn = answered(BATCH, one, 500, b"oh")
    assert (_row(torn)["response"]["body"], torn.answer) == ("oh", None)
    never = not_answered(BATCH, LineProblem(3, "code", "why", "a"))
    assert _row(never)["error"] == {"code": "code", "message": "why", "line": 3}
    assert never.answer is None
    late = _row(expired(BATCH, one))
    assert (late["response"], late["error"]["code"], late["custom_id"]) == (None, "batch_expired", "a")


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"1", b"{}", b'{"id": "x", "response": null}', b'"a"', b"[" * 100_000),
        b'{"id": "batch_req_1_1", "response": 5}',
        b'{"id": "batch_req_1_1", "response": {"status_code": "a"}}',
        b'{"id": "batch_req_1_1", "response": {"status_code": 200}}',
    ],
)
def test_what_is_not_whole_is_no_result(text: bytes) -> None:
    assert parse_result(text) is None
