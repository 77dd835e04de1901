"""The identity of an adapter: the same for the same computation, however its files are written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters.base_weights import BaseWeights
from llmserve.models.adapters.check import AdapterRules, check_layout, check_numbers
from tests.support.adapters import CONFIG, WEIGHTS, AdapterShape, peft_config, write_adapter

RULES = AdapterRules(BaseWeights(), 16)
# A change of this value gives every stored adapter, and all KV that was computed with one, another identity.
GOLDEN = "5ed3f71fda20538c943e3b52aa8161a67d2a9ce9305bbc51d418a4f803d5a0a9"


def golden(folder: Path, **changes: Any) -> Path:
    tensors = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.arange(8, dtype=np.float32),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": -np.arange(8, dtype=np.float32),
    }
    shaped = {name: one.reshape((2, 4) if "_A" in name else (4, 2)) for name, one in tensors.items()}
    return write_adapter(folder, shaped, peft_config(AdapterShape(rank=2, alpha=4.0), **changes))


def digest(folder: Path) -> AdapterDigest:
    return check_numbers(folder, check_layout(folder, RULES))


def test_the_digest_stays_what_it_was(tmp_path: Path) -> None:
    assert digest(golden(tmp_path)) == GOLDEN


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": "another/name", "lora_dropout": 0.3, "inference_mode": False},
        {"target_modules": "all-linear"},
        {"r": 2, "lora_alpha": 2, "alpha_pattern": {"q_proj": 4}},
        {"r": 16, "rank_pattern": {"self_attn.q_proj": 2}},
    ],
)
def test_what_does_not_change_the_computation_does_not_change_the_digest(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert digest(golden(tmp_path, **changes)) == GOLDEN


@pytest.mark.parametrize(
    "changes", [{"lora_alpha": 8}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 5}}]
)
def test_what_changes_the_computation_changes_the_digest(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert digest(golden(tmp_path, **changes)) != GOLDEN


def test_order_and_whitespace_do_not_count(tmp_path: Path) -> None:
    golden(tmp_path)
    keys = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(dict(reversed(keys.items())), indent=9))
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(dict(reversed(tensors.items())), tmp_path / WEIGHTS, metadata={"made": "later"})
    assert digest(tmp_path) == GOLDEN


def test_the_order_of_the_bytes_in_the_file_does_not_count(tmp_path: Path) -> None:
    golden(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    header, data = dict[str, Any](), b""
    for name, one in reversed(tensors.items()):
        header[name] = {"dtype": "F32", "shape": list(one.shape), "data_offsets": [len(data), len(data) + 32]}
        data += one.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert digest(tmp_path) == GOLDEN


def test_every_number_counts_and_so_do_types_and_names(tmp_path: Path) -> None:
    golden(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    seen = {digest(tmp_path)}
    for name, one in tensors.items():
        changed = one.copy()
        changed.flat[-1] += 1
        save_file({**tensors, name: changed}, tmp_path / WEIGHTS)
        seen.add(digest(tmp_path))
    save_file({name: one.astype(np.float16) for name, one in tensors.items()}, tmp_path / WEIGHTS)
    seen.add(digest(tmp_path))
    save_file({name.replace(".0.", ".1."): one for name, one in tensors.items()}, tmp_path / WEIGHTS)
    seen.add(digest(tmp_path))
    assert len(seen) == 5
