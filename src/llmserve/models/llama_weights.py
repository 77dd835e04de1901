"""The weights of a Llama in a GGUF file, under the names that transformers and vLLM know.

transformers can do that for many architectures, but builds the model for it: four times the CPU, most of it
imports. So the most frequent architecture has a way of its own; tests compare the two.
"""

import re
from collections.abc import Iterator
from typing import Any

_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_COMPUTED = "rope_freqs.weight"  # follows from the configuration; transformers leaves it out too


def names(reader: Any) -> dict[str, str] | None:
    """Returns the name in transformers of each tensor that is taken over; None when the file has one that a
    plain Llama has not (experts, biases). reader: a gguf.GGUFReader."""
    found: dict[str, str] = {}
    for tensor in reader.tensors:
        if tensor.name == _COMPUTED:
            continue
        name = _name(tensor.name)
        if name is None:
            return None
        found[tensor.name] = name
    return found


def _name(gguf_name: str) -> str | None:
    match = _LAYER.fullmatch(gguf_name)
    if match is None:
        return _OUTSIDE.get(gguf_name)
    layer, part = match.groups()
    return f"model.layers.{layer}.{_IN_LAYER[part]}.weight" if part in _IN_LAYER else None


def weights(reader: Any, names: dict[str, str], config: Any) -> Iterator[tuple[str, Any]]:
    """Yields each name with its tensor in bfloat16. names: as of `names`. config: a LlamaConfig."""
    import gguf
    import numpy as np
    import torch

    heads = {
        "attn_q.weight": config.num_attention_heads,
        "attn_k.weight": config.num_key_value_heads,
    }
    for tensor in reader.tensors:
        if tensor.name not in names:
            continue
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".", 2)[-1]
        if part in heads:
            values = _in_halves(values, heads[part])
        # A copy: what is not quantized is the mapped file itself, read-only.
        yield names[tensor.name], torch.from_numpy(np.array(values)).to(torch.bfloat16)


def _in_halves(values: Any, heads: int) -> Any:
    """llama.cpp rotates neighbouring rows of a head, transformers the first half with the second."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(2, 1).reshape(values.shape)
