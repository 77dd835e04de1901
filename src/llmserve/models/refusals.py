"""What prepared models do not allow, found by their small files."""

from collections.abc import Iterator
from pathlib import Path

from llmserve.config.conflict import Conflict
from llmserve.config.refusals import MODEL_SOURCE, model_refusals
from llmserve.config.schema import EngineConfig, KvCacheConfig, Speculation
from llmserve.config.speculation import ModelFiles, mtp_layers, speculation_refusals
from llmserve.models.directory import read_config, read_vocabulary, without_tokenizer


def directory_refusals(
    engine: EngineConfig,
    kv_cache: KvCacheConfig,
    folder: Path,
    speculation: Speculation | None = None,
    draft: Path | None = None,
    *,
    hands_over: bool = True,
) -> Iterator[Conflict]:
    """folder, draft: prepared directories of the model and of the one that proposes tokens to it. hands_over:
    whether KV of prompts goes from one engine to another. Errors: ModelNotFound."""
    config = read_config(folder)
    if reason := without_tokenizer(folder):
        yield Conflict((MODEL_SOURCE,), reason)
    beside = read_config(draft) if draft else mtp_layers(config, speculation)
    yield from model_refusals(engine, kv_cache, config, beside)
    if speculation is not None and engine.kind == "vllm":
        model = _files(folder, names_tokens=draft is not None)
        proposing = _files(draft, names_tokens=True) if draft else None
        yield from speculation_refusals(engine, speculation, model, proposing, hands_over=hands_over)


def _files(folder: Path, *, names_tokens: bool) -> ModelFiles:
    """names_tokens: whether to read the vocabulary, which may be large."""
    sampling = "generation_config.json"
    return ModelFiles(
        config=read_config(folder),
        sampling=read_config(folder, sampling) if (folder / sampling).is_file() else {},
        vocabulary=read_vocabulary(folder) if names_tokens else {},
        folder=str(folder),
    )
