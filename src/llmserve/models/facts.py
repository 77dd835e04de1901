"""What can be told of a prepared model without loading it: from its configuration and the headers of its
weights."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmserve.config.refusals import (
    has_windows,
    language_part,
    layer_bytes_per_token,
    longest_tokens,
    uniform_layers,
    unknown_layers,
)
from llmserve.config.schema import EngineConfig, KvCacheConfig
from llmserve.config.speculation import has_mtp_layers
from llmserve.core.errors import InvalidRequest, ManifestError, ModelNotFound
from llmserve.models.adapters.tensors import read_header
from llmserve.models.directory import read_config, weight_files

_MOST_HEADER_BYTES = 100 << 20  # the bound of the safetensors library


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """dtypes: the types of the stored weights, with the parameters of each, most first. Weights that are
    stored quantized are packed, so that their parameters cannot be counted. kv_bytes_per_token: with the
    engine's defaults; None: it cannot be told from the configuration. windowed: some layers see a part of the
    prompt only. not_served: why LLMServe cannot hand over its KV; empty: it can."""

    architectures: tuple[str, ...]
    dtypes: dict[str, int]
    weight_bytes: int
    quantization: str
    longest_tokens: int | None
    layers: int | None
    kv_bytes_per_token: int | None
    windowed: bool
    has_mtp_layers: bool
    not_served: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(self.dtypes.values())


def model_facts(folder: Path) -> ModelFacts:
    """Reads small files and headers, within milliseconds. Errors: ModelNotFound."""
    config = read_config(folder)
    text = language_part(config)
    quantization = config.get("quantization_config") or {}
    return ModelFacts(
        architectures=tuple(config.get("architectures") or ()),
        dtypes=_dtypes(folder),
        weight_bytes=sum(file.stat().st_size for file in weight_files(folder)),
        quantization=str(quantization.get("quant_method", "")),
        longest_tokens=longest_tokens(config),
        layers=layers if isinstance(layers := text.get("num_hidden_layers"), int) else None,
        kv_bytes_per_token=_kv_bytes(config),
        windowed=has_windows(text),
        has_mtp_layers=has_mtp_layers(config),
        not_served=tuple(found.message for found in unknown_layers(config)),
    )


def _dtypes(folder: Path) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for file in weight_files(folder):
        try:
            tensors = read_header(file, _MOST_HEADER_BYTES)
        except (InvalidRequest, OSError) as error:
            raise ModelNotFound(f"{folder}: cannot be read: {error}") from error
        for tensor in tensors.values():
            counts[tensor.dtype] += math.prod(tensor.shape)
    return dict(counts.most_common())


def _kv_bytes(config: Any) -> int | None:
    layers = uniform_layers(config)
    if layers is None:
        return None
    try:
        return layers * layer_bytes_per_token(KvCacheConfig(), EngineConfig(), config)
    except ManifestError:
        return None
