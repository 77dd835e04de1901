"""Text that is to be a JSON object."""

import pytest

from llmserve.core.json_object import json_object


def test_an_object_is_returned() -> None:
    assert json_object(b'{"a": [1, null]}') == {"a": [1, None]}
    assert json_object('{"a": NaN}', parse_constant=lambda word: word) == {"a": "NaN"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: "),
        (b"\xff", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
    ],
)
def test_anything_else_is_an_error(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        json_object(text)
