"""Small models for a test, with what proposes tokens to them from their hidden states: an EAGLE head, or
a layer of a MiMo that predicts a further token (MTP). Both were made to agree with their model most of
the time.

The model has one layer, and its first norm leaves its embeddings as they are. So a copy of that layer,
fed with embeddings alone, computes what the model will, but for the first token of the prompt, which a
head never sees. hidden_share: how much the model's hidden states disturb that. With 0 they would not
matter.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.tiny_llama import make_tiny_llama

if TYPE_CHECKING:
    import torch

_LAYER = "model.layers.0."


def make_tiny_pair(directory: Path, *, seed: int, hidden_share: float) -> tuple[Path, Path]:
    """Writes a Llama and its EAGLE head, and returns both directories."""
    import torch
    from safetensors.torch import save_file

    model = make_tiny_llama(directory / "model", seed=seed, layers=1)
    weights = _with_even_embeddings(model)
    head = directory / "head"
    head.mkdir()
    fields = json.loads((model / "config.json").read_text())
    (head / "config.json").write_text(json.dumps(fields))
    layer = {
        name.removeprefix("model."): weight for name, weight in weights.items() if name.startswith(_LAYER)
    }
    del layer["layers.0.input_layernorm.weight"]
    size = fields["hidden_size"]
    fc = torch.cat([torch.eye(size), _noise(size, hidden_share)], dim=1)
    save_file({**layer, "fc.weight": fc}, head / "model.safetensors")
    return model, head


def make_tiny_mimo(directory: Path, *, seed: int, hidden_share: float) -> Path:
    """Writes a model with such a layer of its own."""
    import torch
    from safetensors.torch import save_file

    make_tiny_llama(directory, seed=seed, layers=1, heads=2)  # a Qwen 2 divides its size by them
    weights = _with_even_embeddings(directory)
    fields = json.loads((directory / "config.json").read_text())
    size, heads = fields["hidden_size"], fields["num_attention_heads"]
    for name, width in (
        ("q", heads),
        ("k", fields["num_key_value_heads"]),
        ("v", fields["num_key_value_heads"]),
    ):
        weights[f"{_LAYER}self_attn.{name}_proj.bias"] = torch.zeros(width * fields["head_dim"])
    further = "model.mtp_layers.0."
    weights |= {
        name.replace(_LAYER, further): weight.clone()
        for name, weight in weights.items()
        if name.startswith(_LAYER)
    }
    for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        weights[f"{further}{name}.weight"] = torch.ones(size)
    weights[f"{further}input_proj.weight"] = torch.cat([_noise(size, hidden_share), torch.eye(size)], dim=1)
    fields |= {"architectures": ["MiMoForCausalLM"], "model_type": "qwen2", "num_nextn_predict_layers": 1}
    (directory / "config.json").write_text(json.dumps(fields))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _with_even_embeddings(model: Path) -> "dict[str, torch.Tensor]":
    """Writes and returns the weights, with embeddings that a norm leaves as they are."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    embedding[0] = embedding[1:].mean(0)  # that of the padding is zero
    weights["model.embed_tokens.weight"] = embedding / embedding.square().mean(1, keepdim=True).sqrt()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return weights


def _noise(size: int, share: float) -> "torch.Tensor":
    import torch

    return torch.randn(size, size) * share / size**0.5
