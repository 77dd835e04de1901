"""What is read of an adapter's configuration is what vLLM computes from it, and what vLLM refuses is refused
before it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from vllm.config.lora import LoRAConfig
from vllm.lora.peft_helper import PEFTHelper

from llmserve.core.errors import InvalidRequest
from llmserve.models.adapters.peft import CONFIG_NAME, PeftConfig, read_peft_config
from tests.support.adapters import AdapterShape, peft_config

MODULES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
    "lm_head",
)


def both(folder: Path, **changes: Any) -> tuple[PeftConfig, PEFTHelper]:
    """Returns our reading of a configuration, and vLLM's of the one that we write for it."""
    (folder / CONFIG_NAME).write_text(json.dumps(peft_config(AdapterShape(), **changes)))
    ours = read_peft_config(folder / CONFIG_NAME)
    (folder / CONFIG_NAME).write_text(ours.to_json({"q_proj"}))
    return ours, PEFTHelper.from_local_dir(str(folder), 4096)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True, "r": 3},
        {"rank_pattern": {"q_proj": 4, "layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"lm_head": 7}},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 4}},
        {"alpha_pattern": {r"layers\.\d+\.mlp.*": 1.5, "layers.[01].self_attn.*": 3}, "use_rslora": True},
        {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 5, "proj": 9, "q_proj|down_proj": 2}},
    ],
)
def test_ranks_and_factors_are_those_of_vllm(tmp_path: Path, changes: dict[str, Any]) -> None:
    ours, theirs = both(tmp_path, **changes)
    for module in MODULES:
        assert (ours.rank(module), ours.scaling(module)) == theirs.get_rank_and_scaling(module), module
    theirs.validate_legal(LoRAConfig(max_lora_rank=8))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"alora_invocation_tokens": [1, 2]},
        {"layer_replication": [[0, 4]]},
        {"use_bdlora": {"a": 1}},
        {"use_qalora": True},
        *({"init_lora_weights": beginning} for beginning in ("pissa", "olora", "loftq", "corda", "PiSSA")),
    ],
)
def test_what_vllm_refuses_is_refused_first(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = peft_config(AdapterShape(), **changes)
    with pytest.raises(ValueError, match="support"):
        PEFTHelper.from_dict(config).validate_legal(LoRAConfig(max_lora_rank=8))
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(InvalidRequest, match=next(iter(changes))):
        read_peft_config(tmp_path / CONFIG_NAME)


@pytest.mark.parametrize("beginning", ["gaussian", "eva", "orthogonal", "mica", "lora_ga", True, False])
def test_what_vllm_accepts_is_accepted(tmp_path: Path, beginning: object) -> None:
    _, theirs = both(tmp_path, init_lora_weights=beginning)
    theirs.validate_legal(LoRAConfig(max_lora_rank=8))
