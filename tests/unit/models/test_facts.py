"""What is told of a model from its small files and the headers of its weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from llmserve.core.errors import ModelNotFound
from llmserve.models.facts import ModelFacts, model_facts

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "torch_dtype": "float16",
}


def facts(folder: Path, **changes: Any) -> ModelFacts:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    weights: dict[str, npt.NDArray[Any]] = {
        "a.weight": np.zeros((4, 5), np.float16),
        "b.weight": np.zeros(7, np.float32),
    }
    save_file(weights, folder / "model.safetensors")
    return model_facts(folder)


def test_a_plain_model(tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert found == ModelFacts(
        architectures=("LlamaForCausalLM",),
        dtypes={"F16": 20, "F32": 7},
        weight_bytes=(tmp_path / "model.safetensors").stat().st_size,
        quantization="",
        longest_tokens=512,
        layers=3,
        kv_bytes_per_token=3 * 2 * 2 * 16 * 2,  # layers, K and V, heads, elements, bytes
        windowed=False,
        has_mtp_layers=False,
        not_served=(),
    )
    assert found.parameters == 27


def test_layers_of_several_kinds(tmp_path: Path) -> None:
    found = facts(tmp_path, layer_types=["full_attention", "sliding_attention", "full_attention"])
    assert (found.windowed, found.kv_bytes_per_token, found.not_served) == (True, None, ())


def test_layers_whose_kv_is_not_handed_over(tmp_path: Path) -> None:
    found = facts(tmp_path, layer_types=["linear_attention"])
    assert found.not_served == ("models with layers of the kind linear_attention are not available yet",)


def test_what_the_configuration_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = model_facts(tmp_path)
    assert (found.architectures, found.longest_tokens, found.layers, found.dtypes) == ((), None, None, {})
    assert found.kv_bytes_per_token is None


def test_further_tokens_and_quantized_weights(tmp_path: Path) -> None:
    found = facts(tmp_path, num_nextn_predict_layers=1, quantization_config={"quant_method": "awq"})
    assert (found.has_mtp_layers, found.quantization) == (True, "awq")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    facts(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelNotFound, match=r"cannot be read: model\.safetensors"):
        model_facts(tmp_path)
