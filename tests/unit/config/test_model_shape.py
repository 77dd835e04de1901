"""What config.json tells of a model, and what it does not."""

from typing import Any

import pytest

from llmserve.config.refusals import longest_tokens, uniform_layers

LLAMA: dict[str, Any] = {"max_position_embeddings": 8192, "num_hidden_layers": 30, "num_attention_heads": 9}


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (LLAMA, 8192),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"max_position_embeddings": 4096, "seq_length": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 9}, 512),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}, 32768),
        (LLAMA | {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 8192),
        (LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 8192),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 8192),
        (LLAMA | {"rope_scaling": None}, 8192),
        (LLAMA | {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, 16384),
        (LLAMA | {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8}}, 8192),
        ({}, None),
        ({"max_position_embeddings": "long"}, None),
    ],
)
def test_how_long_a_request_may_be(model: dict[str, Any], tokens: int | None) -> None:
    assert longest_tokens(model) == tokens


@pytest.mark.parametrize(
    ("more", "layers"),
    [
        ({}, 30),
        ({"layer_types": ["full_attention"] * 30}, 30),
        ({"sliding_window": 4096, "use_sliding_window": False}, 30),
        ({"sliding_window": 4096}, None),
        ({"layer_types": ["full_attention", "sliding_attention"]}, None),
        ({"kv_lora_rank": 512}, None),
        ({"num_kv_shared_layers": 10}, None),
        ({"is_encoder_decoder": True}, None),
        ({"num_hidden_layers": None}, None),
    ],
)
def test_layers_that_keep_all_of_a_requests_kv(more: dict[str, Any], layers: int | None) -> None:
    assert uniform_layers(LLAMA | more) == layers
