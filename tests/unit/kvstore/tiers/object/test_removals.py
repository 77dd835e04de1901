"""The list of what was removed."""

import pytest
import xxhash

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


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"5", b"[]", b"{}", b'{"version": 1}', b'{"version": 2, "packs": {}}', b"[" * 100_000),
        *(b'{"version": 1, "packs": []}', b'{"version": 1, "packs": {"a": 1}}'),
        *(b'{"version": 1, "packs": {"a": ["b"]}}', b'{"version": 1, "packs": {"a": [Infinity]}}'),
    ],
)
def test_a_list_that_somebody_made_up(body: bytes) -> None:
    """Its checksum fits."""
    with pytest.raises(PackDamaged):
        decode_removals(xxhash.xxh3_64_hexdigest(body).encode() + b"\n" + body)
