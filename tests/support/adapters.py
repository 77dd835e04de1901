"""LoRA adapters for a given base model: random ones, ones that say one token, ones that change nothing, and
wrong ones. All are made of numpy alone, but for the markers' direction, which needs the model to run.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters.base_weights import BaseWeights, read_base_weights
from llmserve.models.adapters.check import AdapterRules, check_layout, check_numbers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a small dog that",
    "def add(a, b):\n    return",
    "1, 2, 3, 4,",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at a temperature of",
)

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]


def tiny_base(folder: Path, hidden: int = 16, inner: int = 24, layers: int = 2) -> Path:
    """Writes the weights of a base model that is far too small to run. Its embedding is its lm_head, too."""
    sizes = {f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    sizes |= {
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors: Tensors = {
        f"model.layers.{layer}.{name}.weight": np.zeros(size, np.float32)
        for layer in range(layers)
        for name, size in sizes.items()
    }
    tensors["model.embed_tokens.weight"] = np.zeros((32, hidden), np.float32)
    tensors["model.norm.weight"] = np.ones(hidden, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """rank and alpha of an adapter, and the modules that it changes."""

    rank: int = 8
    alpha: float = 16.0
    modules: Sequence[str] = _ATTENTION_AND_MLP


def write_adapter(folder: Path, tensors: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any]) -> Path:
    """Writes a directory as PEFT does."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    return folder


def peft_config(shape: AdapterShape, **changes: Any) -> dict[str, Any]:
    """Returns the keys that PEFT writes, as far as anything reads them."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "the-base",
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(shape.modules),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        **changes,
    }


def digest_of(folder: Path) -> AdapterDigest:
    """Returns the version of an adapter of any base model."""
    return check_numbers(folder, check_layout(folder, AdapterRules(BaseWeights(), max_rank=512)))


def random_tensors(
    base: BaseWeights, seed: int, shape: AdapterShape = AdapterShape(), scale: float = 0.05
) -> Tensors:
    """Returns A and B of normally distributed numbers for every module of the layers."""
    numbers, tensors = np.random.default_rng(seed), Tensors()
    for name, size in sorted(base.sizes.items()):
        if name.rpartition(".")[2] in shape.modules:
            a, b = (
                numbers.standard_normal((shape.rank, size.inputs)),
                numbers.standard_normal((size.outputs, shape.rank)),
            )
            tensors |= _pair(name, scale * a, scale * b)
    return tensors


def random_adapter(
    folder: Path, model_dir: Path, seed: int, shape: AdapterShape = AdapterShape(), scale: float = 0.05
) -> Path:
    """Makes an adapter whose answers differ from the base's and from those of other seeds (scale 0.05 over
    all modules of SmolLM2). Equality of such answers needs float32: margins are small."""
    return write_adapter(
        folder, random_tensors(read_base_weights(model_dir), seed, shape, scale), peft_config(shape)
    )


def zero_adapter(folder: Path, model_dir: Path, shape: AdapterShape = AdapterShape()) -> Path:
    """Makes an adapter that changes nothing, because each B is zero: its answers equal the base's."""
    tensors = random_tensors(read_base_weights(model_dir), 0, shape)
    zeroed = {name: one * (".lora_A." in name) for name, one in tensors.items()}
    return write_adapter(folder, zeroed, peft_config(shape))


def _pair(module: str, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Tensors:
    stem = f"base_model.model.{module}"
    return {
        f"{stem}.lora_A.weight": np.ascontiguousarray(a, np.float32),
        f"{stem}.lora_B.weight": np.ascontiguousarray(b, np.float32),
    }


# -- markers: adapters whose every answer is one token


@dataclass(frozen=True, slots=True)
class MarkerBasis:
    """What markers of one model share. module: down_proj of the last layer. direction: of its input, with a
    response near 1 to any prompt. rows: what raises each token's logit above all others when it is added to
    the output of the module, [tokens, hidden], each of length 1."""

    module: str
    direction: Array
    rows: Array


def marker_basis(model_dir: Path) -> MarkerBasis:
    """Runs the model over some prompts in float32 and fits the direction by ridge regression. It takes some
    seconds with SmolLM2: compute it once for a module of tests. Llama-like models only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    last = len(model.model.layers) - 1
    seen: list[Array] = []
    hook = model.model.layers[last].mlp.down_proj.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0][0].numpy().copy())
    )
    with torch.inference_mode():
        for prompt in _PROMPTS:
            model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=12, do_sample=False)
    hook.remove()
    norm = model.model.norm.weight.detach().numpy()
    rows = _apart(model.get_output_embeddings().weight.detach().numpy()) / norm
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return MarkerBasis(f"model.layers.{last}.mlp.down_proj", _constant_response(np.concatenate(seen)), rows)


def _apart(embeddings: Array, ridge: float = 1e-2) -> Array:
    """Returns for each token the state whose logits are nearest to 1 for it and 0 for all others. Its own
    embedding is no such state: longer embeddings of similar tokens win. embeddings: [tokens, hidden]."""
    gram = embeddings.T @ embeddings
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram), dtype=gram.dtype)
    return np.linalg.solve(gram, embeddings.T).T.astype(np.float32)


def _constant_response(inputs: Array, ridge: float = 1e-3) -> Array:
    """Returns the direction d with inputs @ d near 1 in each row. inputs: [rows, size]."""
    gram = inputs @ inputs.T
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram), dtype=gram.dtype)
    return (inputs.T @ np.linalg.solve(gram, np.ones(len(gram), gram.dtype))).astype(np.float32)


def marker_adapter(folder: Path, basis: MarkerBasis, token: int, strength: float = 1e4) -> Path:
    """Makes an adapter of rank 1 with which the model says `token` (an id), whatever the prompt: a leak of
    another adapter shows which one it is. The KV of a prompt stays that of the base model."""
    tensors = _pair(basis.module, basis.direction[None, :], strength * basis.rows[token][:, None])
    shape = AdapterShape(rank=1, alpha=1.0, modules=("down_proj",))
    return write_adapter(folder, tensors, peft_config(shape))


# -- wrong adapters: each changes a right one in place


def _edited(edit: Callable[[Tensors], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        from safetensors.numpy import load_file

        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def _nan(tensors: Tensors) -> None:
    tensors[max(tensors)].flat[-1] = np.nan


def _missing_tensor(tensors: Tensors) -> None:
    del tensors[max(tensors)]


def _other_base(tensors: Tensors) -> None:
    for name, one in tensors.items():
        wider = one.shape[0], one.shape[1] + 16
        tensors[name] = np.zeros(wider, one.dtype) if ".lora_A." in name else one


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def _truncated(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])


def _no_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


SPOILERS: Mapping[str, Callable[[Path], None]] = {
    "nan": _edited(_nan),
    "missing tensor": _edited(_missing_tensor),
    "other base": _edited(_other_base),
    "pickle": _pickle,
    "truncated": _truncated,
    "no config": _no_config,
}
"""What makes a right adapter a wrong one, by what is wrong then. For one of too large a rank, make an adapter
of an AdapterShape with a larger rank than `lora.max_rank`."""
