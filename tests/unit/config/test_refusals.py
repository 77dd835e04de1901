"""What a right manifest cannot have, by what is known of the model and of where it is to run."""

from typing import Any

import pytest

from llmserve.config.conflict import Conflict, refuse
from llmserve.config.refusals import (
    Parsers,
    model_refusals,
    unknown_parsers,
    unset_password,
    unusable_api_keys,
)
from llmserve.config.schema import ApiKey, EngineConfig, KvCacheConfig, State
from llmserve.core.errors import ManifestError

SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
PARSERS = Parsers(tool=("hermes", "llama3_json"), reasoning=("qwen3",))


def refused(
    engine: dict[str, Any],
    kv_cache: dict[str, Any],
    model: dict[str, Any],
    draft: dict[str, Any] | None = None,
) -> list[Conflict]:
    sections = EngineConfig.model_validate(engine), KvCacheConfig.model_validate(kv_cache)
    return list(model_refusals(*sections, model, draft))


def test_a_length_beyond_what_the_model_was_made_for() -> None:
    (found,) = refused({"max_model_len": 8193}, {}, SMOLLM2)
    assert found.paths[0] == ("engine", "max_model_len")
    assert found.message == "the model was made for at most 8192 tokens, got 8193"
    assert refused({"max_model_len": 8192}, {}, SMOLLM2) == []
    assert refused({"max_model_len": 8193}, {}, {}) == [], "it is not known"
    longer = [{"name": "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "value": "1"}]
    assert refused({"max_model_len": 8193, "env": longer}, {}, SMOLLM2) == []
    assert refused({"max_model_len": 8193, "kind": "sim"}, {}, SMOLLM2), "the apiserver would refuse"


def test_kv_memory_that_is_too_small_for_one_request() -> None:
    """22.5 KiB a token: 8,192 of them take 180 MiB."""
    (found,) = refused({}, {"memory_gb": 0.1}, SMOLLM2)
    assert found.paths[0] == ("kv_cache", "memory_gb")
    assert found.message == (
        "one request of 8192 tokens takes 0.176 GiB of KV, got 0.1; "
        "set it to 0.176 or more, or engine.max_model_len to 4656 or less"
    )
    assert refused({}, {"memory_gb": 0.176}, SMOLLM2) == [], "what it advises suffices"
    assert refused({"max_model_len": 4656}, {"memory_gb": 0.1}, SMOLLM2) == []
    assert refused({"max_model_len": 4672}, {"memory_gb": 0.1}, SMOLLM2)


def test_the_kv_of_a_draft_needs_room_beside_that_of_the_model() -> None:
    """Its 15 layers take half of what the model's 30 take."""
    draft = SMOLLM2 | {"num_hidden_layers": 15}
    (found,) = refused({}, {"memory_gb": 0.2}, SMOLLM2, draft)
    assert found.message == (
        "one request of 8192 tokens takes 0.264 GiB of KV with that of the draft, head or MTP layers, "
        "got 0.2; set it to 0.264 or more, or engine.max_model_len to 6208 or less"
    )
    assert refused({}, {"memory_gb": 0.264}, SMOLLM2, draft) == []
    unknown = {name: value for name, value in draft.items() if name != "num_attention_heads"}
    assert refused({}, {"memory_gb": 0.1}, SMOLLM2, unknown) == [], "vLLM looks closer"


@pytest.mark.parametrize(
    ("engine", "kv_cache", "is_refused"),
    [
        ({"tensor_parallel": 3}, {"memory_gb": 0.06}, False),  # of each rank
        ({"dtype": "float32"}, {"memory_gb": 0.2}, True),
        ({"dtype": "float32"}, {"memory_gb": 0.2, "hbm_dtype": "fp8"}, False),
        ({"max_model_len": 4600}, {"memory_gb": 0.1, "block_size_tokens": 4608}, False),
        ({"max_model_len": 4600}, {"memory_gb": 0.1, "block_size_tokens": 8192}, True),  # whole blocks
        ({"kind": "sim"}, {"memory_gb": 0.001}, False),
    ],
)
def test_what_a_request_takes(engine: dict[str, Any], kv_cache: dict[str, Any], is_refused: bool) -> None:
    assert bool(refused(engine, kv_cache, SMOLLM2)) == is_refused


def test_a_page_that_is_too_small_for_the_model() -> None:
    (found,) = refused({}, {"page_size_kb": 1}, SMOLLM2)
    assert found.paths[0] == ("kv_cache", "page_size_kb")
    assert found.message.startswith("must be at least 12 for this model")


@pytest.mark.parametrize("other", ["sliding_attention", "chunked_attention"])
def test_layers_that_see_all_and_layers_that_see_a_part_may_be_mixed(other: str) -> None:
    assert not refused({}, {}, SMOLLM2 | {"layer_types": ["full_attention", other]})


# What tells the kinds of layers in the config.json of published models. vLLM gives the first three blocks,
# and the others a state (IsHybrid and IsAttentionFree in its models/interfaces.py).
GEMMA_3 = {"sliding_window": 512, "_sliding_window_pattern": 6}
GPT_OSS = {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 12}
LLAMA_4 = {"text_config": {"attention_chunk_size": 8192, "no_rope_layers": [1, 1, 1, 0]}}
WITH_STATE: dict[str, dict[str, Any]] = {
    "Jamba": {"attn_layer_offset": 4, "attn_layer_period": 8, "mamba_d_conv": 4, "mamba_d_state": 16},
    "Bamba": {"attn_layer_indices": [9, 18, 27], "mamba_n_heads": 128},
    "Zamba 2": {"hybrid_layer_ids": [6, 12], "mamba_d_state": 64},
    "Falcon-H1": {"mamba_chunk_size": 256, "mamba_d_ssm": 1536},
    "Nemotron-H": {"hybrid_override_pattern": "M-M*-", "ssm_state_size": 128},
    "Granite 4": {"layer_types": ["mamba"] * 5 + ["attention"], "mamba_n_heads": 48},
    "Qwen3-Next": {"full_attention_interval": 4, "linear_num_key_heads": 16, "linear_conv_kernel_dim": 4},
    "Qwen 3.5": {"text_config": {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}},
    "Kimi Linear": {"linear_attn_config": {"full_attn_layers": [4, 8], "kda_layers": [1, 2, 3]}},
    "Ring Linear": {"layer_group_size": 5, "group_norm_size": 4},
    "LFM2": {"conv_L_cache": 3, "full_attn_idxs": [2, 5, 8]},
    "Mamba": {"state_size": 16, "conv_kernel": 4},
}


@pytest.mark.parametrize("config", [GEMMA_3, GPT_OSS, LLAMA_4], ids=["Gemma 3", "gpt-oss", "Llama 4"])
def test_models_of_two_kinds_of_layers(config: dict[str, Any]) -> None:
    assert not refused({}, {}, SMOLLM2 | config)


@pytest.mark.parametrize("config", WITH_STATE.values(), ids=WITH_STATE)
def test_models_with_a_state_instead_of_blocks(config: dict[str, Any]) -> None:
    assert "not available yet" in refused({}, {}, SMOLLM2 | config)[0].message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of the kind linear_attention are"),
        ({"text_config": {"layer_types": ["mamba", "attention"]}}, "of the kind attention, mamba are"),
        ({"mamba_d_state": 16}, "of the kind state space are"),
        ({"full_attention_interval": 4}, "of the kind state space are"),
        ({"global_head_dim": 512, "head_dim": 256}, "blocks of different sizes are"),
    ],
)
def test_layers_whose_kv_cannot_be_handed_over(config: dict[str, Any], message: str) -> None:
    found = refused({}, {}, SMOLLM2 | config)[0]
    assert found.paths[0] == ("models", "primary", "source")
    assert f"{message} not available yet" in found.message


def test_heads_of_one_size() -> None:
    assert not refused({}, {}, SMOLLM2 | {"global_head_dim": 64, "head_dim": 64})


def test_parsers_that_vllm_does_not_have() -> None:
    wrong = EngineConfig(tool_call_parser="herms", reasoning_parser="none")
    tool, reasoning = unknown_parsers(wrong, PARSERS)
    assert tool.paths == (("engine", "tool_call_parser"),)
    assert tool.message == "vLLM has no parser 'herms'; did you mean 'hermes'?"
    assert reasoning.message == "vLLM has no parser 'none'; it has qwen3"
    right = EngineConfig(tool_call_parser="hermes", reasoning_parser="qwen3")
    assert not [*unknown_parsers(right, PARSERS), *unknown_parsers(EngineConfig(), PARSERS)]


def test_keys_that_are_not_in_the_environment() -> None:
    keys = (ApiKey(tenant="a", key="x"), ApiKey(tenant="b", key_env="B"), ApiKey(tenant="c", key_env="C"))
    first, second = unusable_api_keys(keys, {"C": ""})
    assert first.paths == (("security", "api_keys", 1, "key_env"),)
    assert second.message == "the environment variable C with the key of c is not set"
    assert not list(unusable_api_keys(keys, {"B": "1", "C": "2"}))


def test_a_password_that_is_not_in_the_environment() -> None:
    state = State.model_validate({"backend": "redis", "redis": {"url": "redis://h:1", "password_env": "PW"}})
    (found,) = unset_password(state, {})
    assert found.paths == (("state", "redis", "password_env"),)
    assert not [*unset_password(state, {"PW": "x"}), *unset_password(State(), {})]


def test_the_first_is_the_error() -> None:
    refuse([])
    with pytest.raises(ManifestError, match=r"^security\.api_keys\[0\]\.key_env: the environment") as failed:
        refuse(unusable_api_keys((ApiKey(tenant="b", key_env="B"),), {}))
    assert Conflict.of(failed.value).message == "the environment variable B with the key of b is not set"


def test_a_variable_with_the_key_of_another_entry_is_refused() -> None:
    keys = (ApiKey(tenant="a", key="1"), ApiKey(tenant="b", key_env="B"), ApiKey(tenant="c", key_env="C"))
    (found,) = unusable_api_keys(keys, {"B": "2", "C": "1"})
    assert found.paths == (("security", "api_keys", 2), ("security", "api_keys", 0))
    assert found.message == "is the same key as security.api_keys[0], of tenant 'a'"
