"""The configuration of an adapter, adapter_config.json of PEFT: what of it changes the computation, and what
engines cannot compute (vllm/lora/peft_helper.py).

Engines get a configuration that is written anew from what was checked, so that no key of the original
reaches them unseen.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llmserve.core.errors import InvalidRequest
from llmserve.core.json_object import json_object

CONFIG_NAME = "adapter_config.json"
MOST_CONFIG_BYTES = 1 << 20
# PEFT's ways to begin a training that leave a plain adapter behind; all others change the base weights, too.
_PLAIN_BEGINNINGS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
# Keys of adapters that compute something else than x·A·B, with its name. Unset, false and empty are fine.
_REFUSED = {
    "modules_to_save": "modules that replace those of the base model",
    "use_dora": "DoRA",
    "lora_bias": "a bias of LoRA",
    "alora_invocation_tokens": "Activated LoRA (aLoRA)",
    "layer_replication": "layer replication",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "LoRA of parameters outside linear modules",
}
# Patterns are regular expressions, which engines match against names of modules. What is accepted cannot take
# long to match: words, dots, classes of digits, alternatives, and few repetitions without nesting.
_PATTERN = re.compile(r"(?:[\w^$|-]|\\?\.\*?|\\d\+?|\[[\d-]+\]\+?){1,256}")
_MOST_REPETITIONS = 3


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """rank_pattern, alpha_pattern: (pattern, value) for modules that differ; the first that matches counts.
    is_transposed: the base model's weights are [inputs, outputs], as those of GPT-2 are."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    is_transposed: bool = False

    @property
    def largest_rank(self) -> int:
        """Engines look at all ranks, even at those of no module."""
        return max([self.r, *(rank for _, rank in self.rank_pattern)])

    def rank(self, module: str) -> int:
        """module: its name in the file, without `base_model.model.`."""
        return int(_first_match(self.rank_pattern, module, self.r))

    def scaling(self, module: str) -> float:
        """Returns the factor of A·B in this module."""
        rank = self.rank(module)
        return _first_match(self.alpha_pattern, module, self.lora_alpha) / (
            math.sqrt(rank) if self.use_rslora else rank
        )

    def to_json(self, modules: Collection[str]) -> str:
        """Returns the text that engines read. modules: last words of the modules' names."""
        keys = {
            "peft_type": "LORA",
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "use_rslora": self.use_rslora,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "target_modules": sorted(modules),
            "bias": "none",
            "fan_in_fan_out": self.is_transposed,
        }
        return json.dumps(keys, indent=1)


def read_peft_config(path: Path) -> PeftConfig:
    """Errors: InvalidRequest with the key that is wrong; OSError."""
    if (size := path.stat().st_size) > MOST_CONFIG_BYTES:
        raise InvalidRequest(f"{path.name}: has {size} bytes; at most {MOST_CONFIG_BYTES} are read")
    try:
        keys = json_object(path.read_bytes(), parse_constant=_no_number)
    except ValueError as error:
        raise InvalidRequest(f"{path.name}: is {error}") from None
    return _PeftKeys(path.name, keys).config()


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


class _PeftKeys:
    """Reads keys, and names file and key when one is wrong."""

    def __init__(self, name: str, keys: Mapping[str, Any]) -> None:
        self._name = name
        self._keys = keys

    def config(self) -> PeftConfig:
        self._check_kind()
        return PeftConfig(
            r=self._rank(self._required("r"), "r"),
            lora_alpha=self._number(self._required("lora_alpha"), "lora_alpha"),
            use_rslora=self._flag("use_rslora"),
            rank_pattern=tuple(
                (one, self._rank(value, one)) for one, value in self._patterns("rank_pattern")
            ),
            alpha_pattern=tuple(
                (one, self._number(value, one)) for one, value in self._patterns("alpha_pattern")
            ),
            is_transposed=self._flag("fan_in_fan_out"),
        )

    def _check_kind(self) -> None:
        if (kind := self._keys.get("peft_type", "LORA")) != "LORA":
            self._fail("peft_type", f"is {kind!r}; only LORA can be served")
        for key, feature in _REFUSED.items():
            if self._keys.get(key):
                self._fail(key, f"{feature} cannot be served; engines would leave it out")
        if (bias := self._keys.get("bias") or "none") != "none":
            self._fail("bias", f"is {bias!r}; an adapter with biases cannot be served")
        beginning = self._keys.get("init_lora_weights")
        if isinstance(beginning, str) and beginning.lower() not in _PLAIN_BEGINNINGS:
            message = (
                f"is {beginning!r}, which changes the weights of the base model; save it with PEFT's "
                "path_initial_model_for_weight_conversion"
            )
            self._fail("init_lora_weights", message)

    def _required(self, key: str) -> Any:
        return self._keys[key] if key in self._keys else self._fail(key, "is missing")

    def _rank(self, value: Any, key: str) -> int:
        return value if type(value) is int and value > 0 else self._fail(key, f"is {value!r}, not a rank")

    def _number(self, value: Any, key: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if is_number else self._fail(key, f"is {value!r}, not a number")

    def _flag(self, key: str) -> bool:
        value = self._keys.get(key) or False
        return value if isinstance(value, bool) else self._fail(key, f"is {value!r}, not true or false")

    def _patterns(self, key: str) -> list[tuple[str, Any]]:
        patterns = self._keys.get(key) or {}
        if not isinstance(patterns, dict):
            self._fail(key, "is not an object")
        for one in patterns:
            if not _PATTERN.fullmatch(one) or sum(map(one.count, "*+")) > _MOST_REPETITIONS:
                self._fail(key, f"has the pattern {one!r}; only names of modules with a few .* are accepted")
        return list(patterns.items())

    def _fail(self, key: str, why: str) -> NoReturn:
        raise InvalidRequest(f"{self._name}: '{key}' {why}")


def _first_match(patterns: tuple[tuple[str, float], ...], module: str, default: float) -> float:
    """Finds the value as PEFT and vLLM do: a pattern matches the end of a name, from a dot on."""
    for pattern, value in patterns:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
