"""Whether a directory holds an adapter that the engines can run: checked before anything loads it.

Every error names the file and the key or tensor that is wrong.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import AdapterDigest
from llmserve.models.adapters.base_weights import BaseWeights, ModuleSize
from llmserve.models.adapters.digest import adapter_digest
from llmserve.models.adapters.peft import CONFIG_NAME, PeftConfig, read_peft_config
from llmserve.models.adapters.tensors import TensorPlace, check_extent, read_header

WEIGHTS_NAME = "adapter_model.safetensors"
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<table>[AB]))"
)
# The bits of a number's exponent, and the integers in which they are looked at. With all of them set, the
# number is NaN or infinite.
_EXPONENTS: Mapping[str, tuple[np.dtype[np.unsignedinteger], int]] = {
    "F32": (np.dtype("<u4"), 0x7F800000),
    "BF16": (np.dtype("<u2"), 0x7F80),
    "F16": (np.dtype("<u2"), 0x7C00),
}


@dataclass(frozen=True, slots=True)
class AdapterRules:
    """What adapters must fit: the base model's modules, and what its engines were started for. targets: the
    modules that adapters may change; empty: all."""

    base: BaseWeights
    max_rank: int
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """What an adapter consists of, apart from the numbers. rank: the largest of its modules. modules: their
    names."""

    config: PeftConfig
    tensors: Mapping[str, TensorPlace]
    rank: int
    modules: frozenset[str]

    @property
    def words(self) -> frozenset[str]:
        """The last words of the modules' names, such as `q_proj`."""
        return frozenset(one.rpartition(".")[2] for one in self.modules)


@dataclass(frozen=True, slots=True)
class _Half:
    """One of the two matrices of a module. side: A or B. is_table: its module is an embedding."""

    module: str
    side: str
    tensor: TensorPlace
    is_table: bool


def check_layout(folder: Path, rules: AdapterRules) -> AdapterLayout:
    """Reads the configuration and the header of the weights, within milliseconds. Errors: InvalidRequest;
    OSError."""
    config = read_peft_config(folder / CONFIG_NAME)
    if config.largest_rank > rules.max_rank:
        raise InvalidRequest(
            f"{CONFIG_NAME}: rank {config.largest_rank} is over {rules.max_rank} (lora.max_rank)"
        )
    weights = folder / WEIGHTS_NAME
    tensors = read_header(weights)
    check_extent(weights, tensors)
    modules = _pairs(tensors, weights.name)
    for module, halves in modules.items():
        _Module(module, halves, config, weights.name).check(rules)
    return AdapterLayout(config, tensors, max(map(config.rank, modules)), frozenset(modules))


def check_numbers(folder: Path, layout: AdapterLayout) -> AdapterDigest:
    """Reads the weights once, in pieces, and returns the digest of the adapter. Errors: InvalidRequest when a
    number is not finite; OSError."""
    scaling = {module: layout.config.scaling(module) for module in layout.modules}
    return adapter_digest(folder / WEIGHTS_NAME, layout.tensors, scaling, _require_finite)


def _pairs(tensors: Mapping[str, TensorPlace], file: str) -> Mapping[str, Mapping[str, _Half]]:
    """Returns A and B of each module."""
    found: dict[str, dict[str, _Half]] = {}
    for half in (_half(tensor, file) for tensor in tensors.values()):
        there = found.setdefault(half.module, {})
        if (other := there.get(half.side)) is not None:
            raise InvalidRequest(
                f"{file}: '{half.tensor.name}' and '{other.tensor.name}' are the same matrix"
            )
        there[half.side] = half
    for module, halves in found.items():
        if missing := {"A", "B"} - halves.keys():
            has = next(iter(halves.values())).tensor.name
            raise InvalidRequest(f"{file}: '{module}' has no lora_{missing.pop()}, only '{has}'")
    if not found:
        raise InvalidRequest(f"{file}: has no tensor at all")
    return found


def _half(tensor: TensorPlace, file: str) -> _Half:
    match = _NAME.fullmatch(tensor.name)
    if match is None:
        raise InvalidRequest(
            f"{file}: tensor '{tensor.name}' is neither A nor B of a LoRA adapter; nothing else can be served"
        )
    if len(tensor.shape) != 2:
        raise InvalidRequest(f"{file}: tensor '{tensor.name}' has shape {list(tensor.shape)}, not two sizes")
    side = match["linear"] or match["table"]
    return _Half(match["module"], side, tensor, is_table=match["table"] is not None)


@dataclass(frozen=True, slots=True)
class _Module:
    """One adapted module. halves: its A and B."""

    name: str
    halves: Mapping[str, _Half]
    config: PeftConfig
    file: str

    def check(self, rules: AdapterRules) -> None:
        """Errors: InvalidRequest."""
        self._check_target(rules.targets)
        self._check_rank()
        sizes = rules.base.find(self.name)
        if rules.base.sizes and not sizes:
            raise InvalidRequest(
                f"{self.file}: tensor '{self.halves['A'].tensor.name}': the base model has no module "
                f"'{self.name}'; was the adapter made for another model?"
            )
        if sizes:
            self._check_sizes(sizes)

    def _check_target(self, targets: tuple[str, ...]) -> None:
        if "experts" in self.name.split("."):  # engines would leave them out, and say nothing
            raise InvalidRequest(
                f"{self.file}: tensor '{self.halves['A'].tensor.name}': adapters of experts are not served"
            )
        word = self.name.rpartition(".")[2]
        if targets and word not in targets and self.name not in targets:
            raise InvalidRequest(
                f"{self.file}: tensor '{self.halves['A'].tensor.name}': adapters may not change '{word}' "
                f"(lora.target_modules: {', '.join(targets)})"
            )

    def _check_rank(self) -> None:
        rank = self.config.rank(self.name)
        for side, half in self.halves.items():
            shape = half.tensor.shape
            if (has := shape["AB".index(side)]) != rank:
                raise InvalidRequest(
                    f"{self.file}: tensor '{half.tensor.name}' of shape {list(shape)} is of rank {has}; "
                    f"{CONFIG_NAME} says {rank}"
                )

    def _check_sizes(self, sizes: frozenset[ModuleSize]) -> None:
        """Compares inputs and outputs with those of the base model."""
        a, b = self.halves["A"], self.halves["B"]
        wanted = [(one.inputs, one.outputs) for one in sizes]
        if self.config.is_transposed or a.is_table:  # an embedding has weights of [inputs, outputs], too
            wanted = [(outputs, inputs) for inputs, outputs in wanted]
        for half, at in ((a, 0), (b, 1)):
            has = half.tensor.shape[1 - at]
            accepted = {pair[at] for pair in wanted}
            if has not in accepted and 0 not in accepted:
                raise InvalidRequest(
                    f"{self.file}: tensor '{half.tensor.name}' of shape {list(half.tensor.shape)} does not "
                    f"fit the base model, whose '{self.name}' has {'in' if at == 0 else 'out'}put size "
                    f"{' or '.join(map(str, sorted(accepted)))}; was the adapter made for another model?"
                )


def _require_finite(tensor: TensorPlace, piece: memoryview) -> None:
    """Errors: InvalidRequest when a number is NaN or infinite."""
    kind, exponent = _EXPONENTS[tensor.dtype]
    if ((np.frombuffer(piece, kind) & exponent) == exponent).any():
        raise InvalidRequest(f"{WEIGHTS_NAME}: tensor '{tensor.name}' has a number that is NaN or infinite")
