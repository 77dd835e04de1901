"""The list of what was removed."""

import pytest

from llmserve.kvstore.tiers.object.layout import PackDamaged
from llmserve.kvstore.tiers.object.removals import decode_removals, encode_removals


def test_it_comes_back() -> None:
    removed = {"one/a.pack": [0, 3], "one/b.pack": []}
    assert decode_removals(encode_removals(removed)) == removed


def test_no_changed_byte_is_believed() -> None:
    encoded = encode_removals({"one/a.pack": [0, 3]})
    for position in range(len(encoded)):
        changed = bytearray(encoded)
        changed[position] ^= 1
        with pytest.raises(PackDamaged):
            decode_removals(bytes(changed))
