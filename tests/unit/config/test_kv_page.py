from typing import Any

import pytest

from llmserve.config.refusals import block_size_tokens, layer_bytes_per_token
from llmserve.config.schema import EngineConfig, KvCacheConfig
from llmserve.core.errors import ManifestError

SMOLLM2 = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576, "dtype": "bfloat16"}


def tokens(kv_cache: dict[str, Any], engine: dict[str, Any] | None = None, **model: Any) -> int | None:
    return block_size_tokens(
        KvCacheConfig.model_validate(kv_cache), EngineConfig.model_validate(engine or {}), SMOLLM2 | model
    )


def test_bytes_of_a_token_in_a_layer() -> None:
    # 22.5 KiB over this model's 30 layers, as measured
    assert layer_bytes_per_token(KvCacheConfig(), EngineConfig(), SMOLLM2) * 30 == 22.5 * 1024


@pytest.mark.parametrize(
    ("kv_cache", "engine", "expected"),
    [
        ({}, {}, None),
        ({"block_size_tokens": 32}, {}, 32),
        ({"page_size_kb": 96}, {}, 128),
        ({"page_size_kb": 12}, {}, 16),
        ({"page_size_kb": 23}, {}, 16),
        ({"page_size_kb": 12, "hbm_dtype": "fp8"}, {}, 32),
        ({"page_size_kb": 24}, {"dtype": "float32"}, 16),
        ({"page_size_kb": 12}, {"tensor_parallel": 3}, 48),
    ],
)
def test_a_page_as_tokens(kv_cache: dict[str, Any], engine: dict[str, Any], expected: int | None) -> None:
    assert tokens(kv_cache, engine) == expected


def test_the_head_size_may_be_its_own() -> None:
    assert tokens({"page_size_kb": 24}, head_dim=128) == 16


def test_a_page_below_16_tokens_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"page_size_kb: must be at least 12 for this model"):
        tokens({"page_size_kb": 11})


def test_a_model_whose_kv_is_not_heads_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"set kv_cache\.block_size_tokens instead"):
        tokens({"page_size_kb": 64}, kv_lora_rank=512)
    assert tokens({"block_size_tokens": 64}, kv_lora_rank=512) == 64
