"""A tiny model by its config alone, and the spec of an engine that would serve it. No engine is started."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmserve.config.schema import EngineConfig, KvCacheConfig, TransferConfig
from llmserve.core.ids import WorkerId
from llmserve.core.request import WorkerRole
from llmserve.engines.spec import EngineSpec

LLAMA: Mapping[str, Any] = MappingProxyType(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "torch_dtype": "float32",
    }
)


def write_config(folder: Path, config: Mapping[str, Any] = LLAMA) -> Path:
    """Returns the folder."""
    (folder / "config.json").write_text(json.dumps(dict(config)))
    return folder


def tiny_spec(
    folder: Path, engine: EngineConfig, *, name: str = "decode-0", kv_store: tuple[str, ...] = ()
) -> EngineSpec:
    return EngineSpec(
        worker_id=WorkerId(name),
        epoch=1,
        role=WorkerRole.DECODE,
        model_dir=folder,
        model_name="tiny",
        model_identity="tiny",
        engine=engine,
        kv_cache=KvCacheConfig(),
        transfer=TransferConfig(),
        kv_store=kv_store,
    )
