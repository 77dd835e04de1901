"""Block identity: chained, salted, and the same bytes as vLLM's."""

import random
from collections.abc import Sequence

import pytest

from llmserve.core import blocks
from llmserve.core.adapters import BASE_MODEL
from llmserve.core.blocks import BlockChains, Namespace, chain_hashes, next_hash
from llmserve.core.ids import AdapterDigest, BlockHash

RED, BLUE = (AdapterDigest(digit * 64) for digit in "ab")
TOKENS = [random.Random(7).choice([3, 200, 40_000, 90_000]) + i for i in range(70)]


def test_only_full_blocks_have_an_identity() -> None:
    assert chain_hashes(TOKENS[:15], 16, "s") == []
    assert len(chain_hashes(TOKENS[:16], 16, "s")) == 1
    assert len(chain_hashes(TOKENS, 16, "s")) == 4


def test_a_hash_names_the_whole_prefix() -> None:
    changed = [TOKENS[0] + 1, *TOKENS[1:]]
    ours, theirs = chain_hashes(TOKENS, 16, "s"), chain_hashes(changed, 16, "s")
    assert all(left != right for left, right in zip(ours, theirs, strict=True))


def test_a_longer_prompt_shares_the_hashes_of_its_prefix() -> None:
    assert chain_hashes(TOKENS, 16, "s")[:2] == chain_hashes(TOKENS[:40], 16, "s")


def test_salts_keep_namespaces_apart() -> None:
    assert not set(chain_hashes(TOKENS, 16, "a")) & set(chain_hashes(TOKENS, 16, "b"))


def test_adapters_keep_all_blocks_apart_even_in_one_namespace() -> None:
    assert not set(chain_hashes(TOKENS, 16, "s")) & set(chain_hashes(TOKENS, 16, "s", RED))
    assert not set(chain_hashes(TOKENS, 16, "s", RED)) & set(chain_hashes(TOKENS, 16, "s", BLUE))
    parent = chain_hashes(TOKENS, 16, "s")[0]
    assert next_hash(parent, TOKENS[:16], "s", RED) != next_hash(parent, TOKENS[:16], "s", BLUE)


def test_the_bytes_do_not_change() -> None:
    """tests/integration/test_vllm_seams.py compares them with vLLM's; this pins them without it."""
    first = chain_hashes(list(range(16)), 16, "ab")[0]
    assert first.hex() == "4395bdc6e7e7ea209d466b37428feb9d954eeeaa4890d72ba025c101258374f6"
    second = chain_hashes(list(range(32)), 16, "ab", RED)[1]
    assert second.hex() == "03a91eb47cc9a913167768b1ac118a74ac2848c915a125a0e7b12bfa5f17e2e4"


@pytest.mark.parametrize("limit_blocks", [2, 6, 1000])
def test_chains_from_what_is_known_are_the_same(limit_blocks: int) -> None:
    chains, draw = BlockChains(limit_blocks), random.Random(3)
    other = [TOKENS[0] + 1, *TOKENS[1:]]
    for _ in range(180):
        tokens = draw.choice([TOKENS, other])[: draw.randrange(71)] + other[: draw.randrange(20)]
        size, salt, adapter = (
            draw.choice([4, 16]),
            draw.choice(["", "a"]),
            draw.choice([BASE_MODEL, RED, BLUE]),
        )
        assert chains.hashes(tokens, size, salt, adapter) == chain_hashes(tokens, size, salt, adapter)


def test_known_blocks_are_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = BlockChains()
    chains.hashes(TOKENS[:48], 16, "s", RED)
    hashed: list[Sequence[int]] = []

    def counting(
        parent: BlockHash | None, token_ids: Sequence[int], cache_salt: str, adapter: AdapterDigest
    ) -> BlockHash:
        hashed.append(token_ids)
        return next_hash(parent, token_ids, cache_salt, adapter)

    monkeypatch.setattr(blocks, "next_hash", counting)
    chains.hashes(TOKENS, 16, "s", RED)
    assert hashed == [TOKENS[48:64]]


BASE = Namespace("rev", "bfloat16", "LBHNC", 16)


@pytest.mark.parametrize(
    "other",
    [
        Namespace("rev2", "bfloat16", "LBHNC", 16),
        Namespace("rev", "fp8", "LBHNC", 16),
        Namespace("rev", "bfloat16", "BLHNC", 16),
        Namespace("rev", "bfloat16", "LBHNC", 32),
        Namespace("rev", "bfloat16", "LBHNC", 16, "float16 up to 2048 tokens"),
        Namespace("rev", "bfloat16", "LBHNC", 16, tensor_parallel=2),
        Namespace("rev", "bfloat16", "LBHNC", 16, pipeline_parallel=2),
        Namespace("rev", "bfloat16", "LBHNC", 16, adapter_digest="a"),
        Namespace("rev", "bfloat16", "LBHNC", 16, tenant_salt="t"),
        Namespace("rev", "bfloat16", "LBHNC", 16, draft_revision="d"),
    ],
)
def test_every_part_of_the_namespace_counts(other: Namespace) -> None:
    assert other.salt() != BASE.salt()


def test_what_was_stored_before_there_were_drafts_is_still_found() -> None:
    """The salt of a namespace without one, as it was then."""
    assert BASE.salt() == "2850c90b53ecd0784e4a4d209386613a"


def test_the_clients_own_salt_is_mixed_in_not_put_in_its_place() -> None:
    assert BASE.salt("mine") != BASE.salt()
    assert BASE.salt("mine") != Namespace("rev2", "bfloat16", "LBHNC", 16).salt("mine")
