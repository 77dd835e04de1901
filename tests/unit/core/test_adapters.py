"""Words about adapters."""

import pytest

from llmserve.core.adapters import is_digest, short_version

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (DIGEST, True),
        ("", False),
        (DIGEST[1:], False),
        (DIGEST + "0", False),
        (DIGEST.upper(), False),
        (DIGEST[1:] + "g", False),
        (DIGEST + "\n", False),
    ],
)
def test_a_digest_has_64_hexadecimal_digits(text: str, is_one: bool) -> None:
    assert is_digest(text) is is_one


def test_a_version_is_shown_by_its_first_digits() -> None:
    assert short_version(DIGEST) == "0123456789ab"
