"""What a model's config.json tells of its length and its KV, without vLLM. Pure.

Where a kind of model needs a closer look the answer is None: nothing is concluded from a guess.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# As vLLM's model_arch_config_convertor.py; the smallest counts.
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Of these the length in the config is the scaled one.
_SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
_FULL = "full_attention"


def text_config(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that also sees or hears: its language part."""
    inner = model.get("text_config")
    return inner if isinstance(inner, Mapping) else model


def longest_tokens(model: Mapping[str, Any]) -> int | None:
    """Prompt and answer that the model was made for, as vLLM takes it."""
    config = text_config(model)
    if own := config.get("model_max_length"):
        lengths = [own]
    else:
        lengths = [config[name] for name in _LENGTHS if config.get(name) is not None]
    if not lengths or not all(isinstance(one, int) for one in lengths):
        return None
    return int(min(lengths) * _rope_factor(config))


def _rope_factor(config: Mapping[str, Any]) -> float:
    if "gemma3" in str(config.get("model_type", "")):
        return 1.0
    factor = 1.0
    for rope in _ropes(config):
        if rope.get("rope_type", rope.get("type")) not in _SCALED_ALREADY:
            factor = rope.get("factor") or factor
    return factor


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """One, or one for each kind of layer."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [one for one in rope.values() if isinstance(one, Mapping)]
    yield from nested or [rope]


def has_several_kv_groups(model: Mapping[str, Any]) -> bool:
    """Layers with different kinds of attention have KV blocks of different kinds."""
    return len(set(text_config(model).get("layer_types") or ())) > 1


def uniform_layers(model: Mapping[str, Any]) -> int | None:
    """How many layers keep all of a request's KV; None: some do not, or it cannot be told."""
    layers = model.get("num_hidden_layers")
    kinds = set(model.get("layer_types") or (_FULL,))
    windowed = model.get("sliding_window") and model.get("use_sliding_window", True)
    unusual = "kv_lora_rank" in model or "num_kv_shared_layers" in model or model.get("is_encoder_decoder")
    if not isinstance(layers, int) or "num_attention_heads" not in model:
        return None
    return None if windowed or unusual or kinds != {_FULL} else layers
