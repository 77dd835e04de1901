"""Words about adapters."""

from itertools import product

import pytest

from llmserve.core.adapters import AdapterTier, is_digest, nearest, short_version

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


NEAREST_FIRST = (AdapterTier.DEVICE, AdapterTier.DRAM, AdapterTier.DISK, AdapterTier.SOURCE)


def test_tiers_are_near_or_far() -> None:
    assert nearest(*reversed(NEAREST_FIRST)) is AdapterTier.DEVICE
    for one, other in product(range(4), range(4)):
        tiers = NEAREST_FIRST[one], NEAREST_FIRST[other]
        assert tiers[0].is_at_least(tiers[1]) is (one <= other)
        assert nearest(*tiers) is NEAREST_FIRST[min(one, other)]
