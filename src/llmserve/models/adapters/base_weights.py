"""What adapters must fit: the linear modules of the base model and their sizes, from its files' headers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmserve.config.schema.lora import EMBEDDINGS
from llmserve.core.errors import InvalidRequest, ModelNotFound
from llmserve.models.adapters.tensors import read_header
from llmserve.models.directory import weight_files

_MOST_HEADER_BYTES = 100 << 20  # the bound of the safetensors library
_WEIGHT = ".weight"
_PACKED = (".qweight", ".weight_packed")  # GPTQ, AWQ, compressed-tensors: sizes are not in the shape
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class ModuleSize:
    """Sizes of a linear module's input and output. 0: not known, because its weights are packed."""

    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """sizes: of each module by its name in the model, such as `model.layers.0.self_attn.q_proj`. Empty: not
    known, so that every module fits."""

    sizes: Mapping[str, ModuleSize] = field(default_factory=dict)

    def find(self, module: str) -> frozenset[ModuleSize]:
        """Returns the sizes that a module of this name may have; empty when the model has none. Names of one
        model differ in what stands before its numbered layers (checkpoints of vision models, GPT-2)."""
        if (exact := self.sizes.get(module)) is not None:
            return frozenset({exact})
        tail = _tail(module)
        return frozenset(size for name, size in self.sizes.items() if _tail(name) == tail)

    def linear_modules(self) -> tuple[str, ...]:
        """Returns the last words of the names of all linear modules in the layers, such as `q_proj`: what
        adapters may change unless `lora.target_modules` says otherwise."""
        words = {name.rpartition(".")[2] for name in self.sizes if _NUMBER.search(name)}
        return tuple(sorted(words - EMBEDDINGS))


def read_base_weights(model_dir: Path) -> BaseWeights:
    """Reads the headers of the safetensors files within milliseconds. A model without any fits every
    adapter, as far as this can tell. Errors: ModelNotFound."""
    sizes: dict[str, ModuleSize] = {}
    for file in weight_files(model_dir):
        try:
            tensors = read_header(file, _MOST_HEADER_BYTES)
        except (InvalidRequest, OSError) as error:
            raise ModelNotFound(f"{model_dir}: cannot be read: {error}") from error
        for tensor in tensors.values():
            if tensor.name.endswith(_PACKED) or (tensor.name.endswith(_WEIGHT) and len(tensor.shape) == 2):
                known = tensor.name.endswith(_WEIGHT) and tensor.dtype in _FLOATS
                outputs, inputs = tensor.shape if known else (0, 0)
                sizes[tensor.name.rpartition(".")[0]] = ModuleSize(inputs, outputs)
    if "lm_head" not in sizes:  # it shares the weights of the embedding
        shared = [size for name, size in sizes.items() if name.endswith("embed_tokens")]
        sizes.update(zip(("lm_head",), shared, strict=False))
    return BaseWeights(sizes)


def _tail(module: str) -> str:
    """Returns the name from the word before its first number on."""
    words = module.split(".")
    first = next((at for at, word in enumerate(words) if word.isdigit()), len(words))
    return ".".join(words[max(0, first - 1) :])
