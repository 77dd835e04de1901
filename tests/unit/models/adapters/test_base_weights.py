"""What a base model offers to adapters, from its headers."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from llmserve.core.errors import ModelNotFound
from llmserve.models.adapters.base_weights import BaseWeights, ModuleSize, read_base_weights


def test_linear_modules_and_their_sizes_are_found(base: Path) -> None:
    weights = read_base_weights(base)
    assert weights.find("model.layers.1.mlp.down_proj") == {ModuleSize(24, 16)}
    assert weights.find("model.layers.2.mlp.down_proj") == frozenset()
    expected = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert weights.linear_modules() == expected


def test_a_head_that_shares_the_embedding_has_its_sizes(base: Path) -> None:
    assert read_base_weights(base).find("lm_head") == {ModuleSize(16, 32)}


def test_names_may_differ_before_the_layers(base: Path) -> None:
    weights = read_base_weights(base)
    assert weights.find("language_model.model.layers.1.mlp.up_proj") == {ModuleSize(16, 24)}
    assert weights.find("model.layers.1.mlp.up") == frozenset()


def test_all_shards_count(base: Path) -> None:
    save_file({"lm_head.weight": np.zeros((32, 16), np.float16)}, base / "model-2.safetensors")
    save_file(
        {"model.layers.9.mlp.up_proj.weight": np.zeros((4, 2), np.float16)}, base / "model-3.safetensors"
    )
    assert read_base_weights(base).find("model.layers.9.mlp.up_proj") == {ModuleSize(2, 4)}


def test_packed_weights_say_nothing_of_sizes(tmp_path: Path) -> None:
    packed: dict[str, npt.NDArray[Any]] = {
        "model.layers.0.mlp.up_proj.qweight": np.zeros((2, 4), np.int32),
        "model.layers.0.mlp.down_proj.weight": np.zeros((2, 4), np.uint8),
        "model.layers.0.mlp.gate_proj.bias": np.zeros(4, np.float32),
    }
    save_file(packed, tmp_path / "model.safetensors")
    weights = read_base_weights(tmp_path)
    assert weights.find("model.layers.0.mlp.up_proj") == {ModuleSize(0, 0)}
    assert weights.find("model.layers.0.mlp.down_proj") == {ModuleSize(0, 0)}
    assert weights.find("model.layers.0.mlp.gate_proj") == frozenset()


def test_other_formats_say_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert read_base_weights(tmp_path) == BaseWeights()


def test_a_damaged_base_is_named(base: Path) -> None:
    (base / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelNotFound, match=r"base: cannot be read: model\.safetensors"):
        read_base_weights(base)
