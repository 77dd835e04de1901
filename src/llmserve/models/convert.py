"""Converts a GGUF file to a directory of safetensors, tokenizer and generation settings. It imports torch, so
it runs as a process of its own (`python -m llmserve.models convert`).

transformers converts many architectures, but it builds the model for that, which takes four times the CPU,
mostly for imports. So Llama, the most frequent architecture, has a conversion of its own; tests compare the
two.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmserve.core.errors import LLMServeError
from llmserve.core.process import importing
from llmserve.models.files import Progress

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
_COMPUTED = "rope_freqs.weight"  # follows from the configuration; transformers omits it, too


def llama_names(reader: Any) -> dict[str, str] | None:
    """Returns the name in transformers of each tensor; None when the file has a tensor that a plain Llama
    lacks (experts, biases). reader: a gguf.GGUFReader."""
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


def llama_weights(reader: Any, names: dict[str, str], config: Any) -> Iterator[tuple[str, Any]]:
    """Yields each name with its tensor in bfloat16. names: from `llama_names`. config: a LlamaConfig."""
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
        # This copies, because tensors that are not quantized are the mapped file itself, read-only.
        yield names[tensor.name], torch.from_numpy(np.array(values)).to(torch.bfloat16)


def _in_halves(values: Any, heads: int) -> Any:
    """Reorders rows: llama.cpp rotates neighbouring rows of a head, transformers the first half with the
    second."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(2, 1).reshape(values.shape)


CONVERTER_VERSION = 1
"""The version is part of the cache key. Raise it when the output of a conversion changes."""

_PROBE = [{"role": "user", "content": "Hello"}]


def convert_gguf(source: Path, out: Path, progress: Progress) -> None:
    """Errors: LLMServeError when the chat template of the source does not work in the result."""
    progress("loading the libraries")
    with importing():
        import gguf
        import torch  # noqa: F401 - transformers imports it when it needs it first
        import transformers

    transformers.utils.logging.disable_progress_bar()
    # transformers parses the whole file three times: for the configuration, the tokenizer and the weights.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    reader = gguf.GGUFReader(str(source))
    progress("reading the tokenizer")
    config = transformers.AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    names = llama_names(reader) if config.model_type == "llama" else None
    # AutoTokenizer would choose this class for a Llama, and import all others.
    loader = transformers.AutoTokenizer if names is None else transformers.PreTrainedTokenizerFast
    tokenizer = loader.from_pretrained(source.parent, gguf_file=source.name)
    progress("dequantizing the weights to bfloat16")
    if names is None:
        _save_any(source, out, progress)
    else:
        _save_llama(config, dict(llama_weights(reader, names, config)), out, progress)
    tokenizer.save_pretrained(out)
    progress("checking the chat template")
    _check_chat_template(loader.from_pretrained(out), tokenizer.chat_template, source)


def _save_llama(config: Any, weights: dict[str, Any], out: Path, progress: Progress) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    progress("writing safetensors")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(out)
    transformers.GenerationConfig.from_model_config(config).save_pretrained(out)


def _save_any(source: Path, out: Path, progress: Progress) -> None:
    """Converts any architecture that transformers reads."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    _drop_quantization(model)
    progress("writing safetensors")
    model.save_pretrained(out)
    model.generation_config.save_pretrained(out)


def _drop_quantization(model: Any) -> None:
    """Removes the quantization settings: the result is bfloat16, and vLLM would expect a quantized format."""
    for holder in (model, model.config):
        if getattr(holder, "quantization_config", None) is not None:
            del holder.quantization_config


def _check_chat_template(tokenizer: Any, wanted: str | None, source: Path) -> None:
    if not wanted:
        return
    rendered = tokenizer.apply_chat_template(_PROBE, tokenize=False, add_generation_prompt=True)
    if _PROBE[0]["content"] not in rendered:
        raise LLMServeError(f"{source}: its chat template does not work after the conversion")
