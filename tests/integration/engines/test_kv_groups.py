"""What is made of vLLM's KV cache groups. (Its specs take seconds to import.)"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)

from llmserve.core.errors import ManifestError
from llmserve.core.kv_params import BlockTable
from llmserve.engines.connector.groups import KvGroups

BLOCK, WINDOW = 4, 6
_SHAPE: dict[str, Any] = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 8, "dtype": torch.bfloat16}
FULL = FullAttentionSpec(**_SHAPE)
SLIDING = SlidingWindowSpec(**_SHAPE, sliding_window=WINDOW)
CHUNKED = ChunkedLocalAttentionSpec(**_SHAPE, attention_chunk_size=WINDOW)
STATE = MambaSpec(block_size=BLOCK, shapes=((1, 8),), dtypes=(torch.bfloat16,))


def config_of(*specs: KVCacheSpec) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([f"layer.{number}"], spec) for number, spec in enumerate(specs)]
    return KVCacheConfig(10, [], groups)


HYBRID = KvGroups.of(config_of(SLIDING, SLIDING, FULL), BLOCK)


def test_the_group_that_sees_everything_is_counted() -> None:
    assert (HYBRID.windows, HYBRID.counted, HYBRID.are_several) == ((WINDOW, WINDOW, 0), 2, True)
    other = KvGroups.of(config_of(SLIDING, FULL, SLIDING), BLOCK)
    assert HYBRID.layers != other.layers, "the same layers in other groups are not the same KV"


@pytest.mark.parametrize(("spec", "window"), [(FULL, 0), (SLIDING, WINDOW)])
def test_of_one_group_only_the_window_matters(spec: KVCacheSpec, window: int) -> None:
    assert KvGroups.of(config_of(spec), BLOCK) == KvGroups(BLOCK, (window,))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ((FULL, replace(SLIDING, head_size=16)), "blocks of different sizes"),
        ((FULL, replace(SLIDING, block_size=8, head_size=4)), "blocks of different sizes"),
        ((FULL, STATE), "MambaSpec"),
        ((STATE,), "MambaSpec"),
        ((FULL, CHUNKED), "ChunkedLocalAttentionSpec"),
        ((SLIDING, replace(SLIDING, sliding_window=8)), "without a layer that sees the whole prompt"),
    ],
)
def test_groups_that_cannot_be_handed_over(specs: tuple[KVCacheSpec, ...], message: str) -> None:
    with pytest.raises(ManifestError, match=rf"^models\.primary\.source: .*{message}"):
        KvGroups.of(config_of(*specs), BLOCK)


def test_blocks_that_a_window_has_left_behind_are_not_in_the_table() -> None:
    ids = ([0, 0, 5, 6], [0, 7, 8, 9], [1, 2, 3, 4])
    assert HYBRID.table(ids) == BlockTable((5, 6, 7, 8, 9, 1, 2, 3, 4), (2, 1, 0))
    assert HYBRID.table(ids, 2, 3) == BlockTable((5, 8, 3), (2, 2, 2))


@pytest.mark.parametrize("tokens", range(1, 40))
def test_whether_the_last_token_can_be_computed_again(tokens: int) -> None:
    """The owner has dropped the blocks of tokens that the next one does not see."""
    first_kept = max(0, tokens - WINDOW + 1) // BLOCK * BLOCK
    first_seen = max(0, tokens - WINDOW)
    assert HYBRID.keep_the_last(tokens) == (first_seen >= first_kept)
    assert KvGroups(BLOCK).keep_the_last(tokens)
