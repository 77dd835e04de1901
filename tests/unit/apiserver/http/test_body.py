"""What is said of a body before anything reads it."""

import json
from typing import Any

import pytest

from llmserve.apiserver.http.body import MAX_DEPTH, check_body
from llmserve.core.errors import InvalidRequest

JSON = [(b"content-type", b"application/json; charset=utf-8")]


def refusal(body: bytes, headers: Any = JSON) -> InvalidRequest | None:
    try:
        check_body(headers, body)
    except InvalidRequest as refused:
        return refused
    return None


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"stop": ["a", "\ud800"]}, "stop.1"),
        ({"a": {"b": [{"c": float("nan")}]}}, "a.b.0.c"),
        ({"a": float("-inf")}, "a"),
        ({"a": {"\udfff": 1}}, "a.\\udfff"),
        (["\ud800"], "0"),
        ("\ud800", ""),
    ],
)
def test_the_field_is_named(value: Any, field: str) -> None:
    refused = refusal(json.dumps(value).encode())
    assert refused is not None
    assert refused.field == field
    assert refused.message.startswith(field or "the body")


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "\\ud83d\\ude00"}',
        b'{"a": "\\\\ud800"}',
        b'{"a": "NaN, Infinity"}',
        b'\xef\xbb\xbf{"a": 1}',
        b"",
        b"{",
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[" + b"[]," * 500 + b"[]]",
    ],
)
def test_what_is_fine_or_for_others_to_refuse(body: bytes) -> None:
    assert refusal(body) is None


@pytest.mark.parametrize("body", [b'"\xff"', b'"\xed\xa0\x80"', '"a"'.encode("utf-16"), b'"\x00"'])
def test_what_is_no_text(body: bytes) -> None:
    assert refusal(body) is not None
    assert refusal(body, [(b"content-type", b"application/octet-stream")]) is None
    assert refusal(body, []) is None


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 50_000])
def test_nesting_has_an_end(depth: int) -> None:
    refused = refusal(b"[" * depth + b"]" * depth)
    assert refused is not None
    assert str(MAX_DEPTH) in refused.message
