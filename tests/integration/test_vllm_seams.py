"""What we take for granted about vLLM's internals, checked against the installed one."""

import random

import pytest

from llmserve.core.blocks import chain_hashes

TOKENS = [random.Random(7).choice([3, 200, 40_000, 90_000]) + i for i in range(70)]


@pytest.mark.parametrize("salt", ["", "0123456789abcdef0123456789abcdef"])
def test_block_identity_is_the_prefix_hash_of_vllm(salt: str) -> None:
    from vllm.utils.hashing import sha256_cbor
    from vllm.v1.core.kv_cache_utils import hash_block_tokens, init_none_hash

    init_none_hash(sha256_cbor)
    parent, expected = None, []
    for start in range(0, 64, 16):
        extra = (("cache_salt", salt),) if salt and start == 0 else None
        parent = hash_block_tokens(sha256_cbor, parent, TOKENS[start : start + 16], extra)
        expected.append(parent)
    assert chain_hashes(TOKENS, 16, salt) == expected
