"""What is refused before anything loads it, and that the error names file and tensor or key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.models.adapters.base_weights import BaseWeights, read_base_weights
from llmserve.models.adapters.check import AdapterLayout, AdapterRules, check_layout, check_numbers
from tests.support.adapters import (
    CONFIG,
    SPOILERS,
    WEIGHTS,
    AdapterShape,
    Tensors,
    peft_config,
    random_adapter,
    random_tensors,
    write_adapter,
)

STEM = "base_model.model.model.layers.0.mlp.up_proj"


@pytest.fixture
def rules(base: Path) -> AdapterRules:
    weights = read_base_weights(base)
    return AdapterRules(weights, 16, weights.linear_modules())


def check_adapter(folder: Path, rules: AdapterRules) -> AdapterLayout:
    layout = check_layout(folder, rules)
    check_numbers(folder, layout)
    return layout


def refusal(folder: Path, rules: AdapterRules) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check_adapter(folder, rules)
    return caught.value.message


def with_config(adapter: Path, **changes: Any) -> Path:
    keys = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(keys | changes))
    return adapter


def test_a_right_adapter_is_accepted(adapter: Path, rules: AdapterRules) -> None:
    found = check_adapter(adapter, rules)
    assert (found.rank, found.config.lora_alpha) == (8, 16.0)
    assert found.words == set(rules.targets)


@pytest.mark.parametrize(
    ("spoiler", "said"),
    [
        ("nan", "model.layers.1.self_attn.v_proj.lora_B.weight' has a number that is NaN or infinite"),
        ("missing tensor", "'model.layers.1.self_attn.v_proj' has no lora_B, only 'base_model.model."),
        ("other base", "was the adapter made for another model?"),
        ("truncated", f"{WEIGHTS}: was cut off, or is damaged"),
    ],
)
def test_a_spoiled_adapter_is_refused(adapter: Path, rules: AdapterRules, spoiler: str, said: str) -> None:
    SPOILERS[spoiler](adapter)
    message = refusal(adapter, rules)
    assert said in message
    assert WEIGHTS in message


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_no_number_may_be_infinite(
    tmp_path: Path, base: Path, rules: AdapterRules, dtype: str, number: float
) -> None:
    tensors = {name: one.astype(dtype) for name, one in random_tensors(rules.base, 1).items()}
    largest = np.finfo(dtype).max
    tensors[f"{STEM}.lora_A.weight"][0, 0] = largest
    check_adapter(write_adapter(tmp_path / "x", tensors, peft_config(AdapterShape())), rules)
    tensors[f"{STEM}.lora_A.weight"][0, 0] = number
    write_adapter(tmp_path / "x", tensors, peft_config(AdapterShape()))
    assert f"'{STEM}.lora_A.weight' has a number" in refusal(tmp_path / "x", rules)


def test_bfloat16_is_read_as_its_bits(tmp_path: Path, rules: AdapterRules) -> None:
    """numpy has no such type, so the header of integers is rewritten."""
    tensors = {name: one.astype(np.float16) for name, one in random_tensors(rules.base, 1).items()}
    folder = write_adapter(tmp_path / "x", tensors, peft_config(AdapterShape()))
    text = (folder / WEIGHTS).read_bytes().replace(b'"F16"', b'"BF16"')
    length = int.from_bytes(text[:8], "little") + len(tensors)
    (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + text[8:])
    assert check_adapter(folder, rules).rank == 8
    (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + text[8:-2] + b"\x80\x7f")
    assert "NaN or infinite" in refusal(folder, rules)


Edit = Callable[[Tensors], None]


def _other_type(tensors: Tensors) -> None:
    tensors[f"{STEM}.lora_A.weight"] = tensors[f"{STEM}.lora_A.weight"].astype(np.float64)


def _unknown_module(tensors: Tensors) -> None:
    for side in "AB":
        tensors[f"{STEM.replace('.0.', '.9.')}.lora_{side}.weight"] = tensors.pop(
            f"{STEM}.lora_{side}.weight"
        )


def _forbidden_module(tensors: Tensors) -> None:
    for side in "AB":
        tensors[f"base_model.model.lm_head.lora_{side}.weight"] = tensors.pop(f"{STEM}.lora_{side}.weight")


def _expert(tensors: Tensors) -> None:
    for side in "AB":
        tensors[f"{STEM.replace('.up', '.experts.0.up')}.lora_{side}.weight"] = tensors.pop(
            f"{STEM}.lora_{side}.weight"
        )


def _stranger(tensors: Tensors) -> None:
    tensors["base_model.model.classifier.weight"] = np.zeros((2, 2), np.float32)


def _three_sizes(tensors: Tensors) -> None:
    tensors[f"{STEM}.lora_A.weight"] = np.zeros((8, 16, 1), np.float32)


def _twice(tensors: Tensors) -> None:
    tensors[f"{STEM.removeprefix('base_model.model.')}.lora_A.weight"] = np.zeros((8, 16), np.float32)


def _rank_in_file(tensors: Tensors) -> None:
    tensors[f"{STEM}.lora_B.weight"] = np.zeros((24, 4), np.float32)


def _wrong_outputs(tensors: Tensors) -> None:
    tensors[f"{STEM}.lora_B.weight"] = np.zeros((25, 8), np.float32)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_other_type, f"tensor '{STEM}.lora_A.weight' is of type F64; known are F32, F16, BF16"),
        (_unknown_module, "the base model has no module 'model.layers.9.mlp.up_proj'"),
        (_expert, "experts.0.up_proj.lora_A.weight': adapters of experts are not served"),
        (_forbidden_module, "adapters may not change 'lm_head' (lora.target_modules: down_proj, gate_proj"),
        (_stranger, "'base_model.model.classifier.weight' is neither A nor B"),
        (_three_sizes, "has shape [8, 16, 1], not two sizes"),
        (_twice, "are the same matrix"),
        (_rank_in_file, f"'{STEM}.lora_B.weight' of shape [24, 4] is of rank 4; {CONFIG} says 8"),
        (_wrong_outputs, "whose 'model.layers.0.mlp.up_proj' has output size 24"),
        (Tensors.clear, "has no tensor at all"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, rules: AdapterRules, edit: Edit, said: str) -> None:
    tensors = random_tensors(rules.base, 1)
    edit(tensors)
    folder = write_adapter(tmp_path / "x", tensors, peft_config(AdapterShape()))
    message = refusal(folder, rules)
    assert said in message
    assert message.startswith(WEIGHTS)


def test_a_rank_over_the_limit_is_refused(tmp_path: Path, base: Path, rules: AdapterRules) -> None:
    folder = random_adapter(tmp_path / "x", base, 1, AdapterShape(rank=17))
    assert "adapter_config.json: rank 17 is over 16 (lora.max_rank)" in refusal(folder, rules)


def test_a_rank_of_no_module_counts_because_engines_refuse_it(adapter: Path, rules: AdapterRules) -> None:
    said = refusal(with_config(adapter, rank_pattern={"no_such_module": 32}), rules)
    assert "rank 32 is over 16" in said


def test_ranks_may_differ_between_modules(tmp_path: Path, rules: AdapterRules) -> None:
    tensors = random_tensors(rules.base, 1) | {
        name: one for name, one in random_tensors(rules.base, 1, AdapterShape(4)).items() if "up_proj" in name
    }
    config = peft_config(AdapterShape(), rank_pattern={"up_proj": 4}, alpha_pattern={r"layers\.1\.mlp.*": 2})
    found = check_adapter(write_adapter(tmp_path / "x", tensors, config), rules)
    assert found.rank == 8
    assert found.config.rank("model.layers.0.mlp.up_proj") == 4
    assert found.config.scaling("model.layers.0.mlp.up_proj") == 4.0
    assert found.config.scaling("model.layers.1.mlp.up_proj") == 0.5
    assert found.config.scaling("model.layers.0.self_attn.q_proj") == 2.0


def test_the_embedding_is_a_table_of_rows(tmp_path: Path, rules: AdapterRules) -> None:
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    tensors = {f"{stem}A": np.zeros((8, 32), np.float32), f"{stem}B": np.zeros((16, 8), np.float32)}
    folder = write_adapter(tmp_path / "x", tensors, peft_config(AdapterShape()))
    everything = AdapterRules(rules.base, 16)
    assert check_adapter(folder, everything).words == {"embed_tokens"}
    assert "adapters may not change 'embed_tokens'" in refusal(folder, rules)


def test_weights_of_the_base_may_be_transposed(tmp_path: Path, rules: AdapterRules) -> None:
    tensors = {
        f"{STEM}.lora_A.weight": np.zeros((8, 24), np.float32),
        f"{STEM}.lora_B.weight": np.zeros((16, 8), np.float32),
    }
    folder = write_adapter(tmp_path / "x", tensors, peft_config(AdapterShape(), fan_in_fan_out=True))
    assert check_adapter(folder, rules).words == {"up_proj"}
    (folder / CONFIG).write_text(check_layout(folder, rules).config.to_json({"up_proj"}))
    check_adapter(folder, rules)
    with_config(folder, fan_in_fan_out=False)
    assert "input size 16" in refusal(folder, rules)


def test_without_a_known_base_every_size_fits(adapter: Path) -> None:
    SPOILERS["other base"](adapter)
    assert check_adapter(adapter, AdapterRules(BaseWeights(), 16)).rank == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "'peft_type' is 'IA3'; only LORA"),
        ({"use_dora": True}, "'use_dora' DoRA cannot be served"),
        ({"bias": "all"}, "'bias' is 'all'"),
        ({"lora_bias": True}, "'lora_bias' a bias of LoRA"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
        ({"init_lora_weights": "pissa_niter_4"}, "'init_lora_weights' is 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "'init_lora_weights' is 'olora'"),
        ({"init_lora_weights": "loftq"}, "'init_lora_weights' is 'loftq'"),
        ({"alora_invocation_tokens": [1]}, "Activated LoRA"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
        ({"use_qalora": True}, "QALoRA"),
        ({"use_bdlora": {}, "trainable_token_indices": [3]}, "trained tokens"),
        ({"target_parameters": ["experts"]}, "'target_parameters'"),
        ({"r": 0}, "'r' is 0, not a rank"),
        ({"r": True}, "'r' is True, not a rank"),
        ({"lora_alpha": "16"}, "'lora_alpha' is '16', not a number"),
        ({"use_rslora": "yes"}, "'use_rslora' is 'yes', not true or false"),
        ({"rank_pattern": ["q_proj"]}, "'rank_pattern' is not an object"),
        ({"rank_pattern": {"(a+)+": 4}}, r"the pattern '(a+)+'"),
        ({"alpha_pattern": {".*.*.*.*x": 4}}, "the pattern"),
        ({"rank_pattern": {"q_proj": 1.5}}, "'q_proj' is 1.5, not a rank"),
    ],
)
def test_what_engines_cannot_compute_is_refused_by_its_key(
    adapter: Path, rules: AdapterRules, changes: dict[str, Any], said: str
) -> None:
    message = refusal(with_config(adapter, **changes), rules)
    assert said in message
    assert message.startswith(CONFIG)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"use_bdlora": None, "layer_replication": None},
        {"rank_pattern": None},
    ],
)
def test_what_changes_nothing_else_is_accepted(
    adapter: Path, rules: AdapterRules, changes: dict[str, Any]
) -> None:
    check_adapter(with_config(adapter, **changes), rules)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is not a JSON object"),
        ("{", "is not JSON"),
        ('{"r": NaN}', "NaN is no number"),
        ("[" * 100_000, "is not JSON"),
        ('{"lora_alpha": 1}', "'r' is missing"),
        (" " * (1 << 20) + "{}", "at most 1048576 are read"),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    adapter: Path, rules: AdapterRules, text: str, said: str
) -> None:
    (adapter / CONFIG).write_text(text)
    assert said in refusal(adapter, rules)
