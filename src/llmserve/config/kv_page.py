"""`kv_cache.page_size_kb` as tokens, once the model is known. Pure; called before an engine starts."""

from collections.abc import Mapping
from typing import Any

from llmserve.config.conflict import Conflict, Path
from llmserve.config.schema import EngineConfig, KvCacheConfig

_PAGE_SIZE: Path = ("kv_cache", "page_size_kb")
_MULTIPLE_TOKENS = 16
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
_DEFAULT_DTYPE = "bfloat16"


def block_size_tokens(kv_cache: KvCacheConfig, engine: EngineConfig, model: Mapping[str, Any]) -> int | None:
    """Tokens in a block, or None for the engine's default.

    `model` is the model's config.json. Errors: ManifestError when a page is too small for 16 tokens,
    or the model's attention is of a kind whose KV cannot be told from its config.
    """
    if kv_cache.page_size_kb is None:
        return kv_cache.block_size_tokens
    token_bytes = layer_bytes_per_token(kv_cache, engine, model)
    tokens = kv_cache.page_size_kb * 1024 // token_bytes // _MULTIPLE_TOKENS * _MULTIPLE_TOKENS
    if tokens == 0:
        least = -(-token_bytes * _MULTIPLE_TOKENS // 1024)
        message = (
            f"must be at least {least} for this model ({_MULTIPLE_TOKENS} tokens of {token_bytes} bytes), "
            f"got {kv_cache.page_size_kb}"
        )
        raise Conflict((_PAGE_SIZE,), message).as_error()
    return tokens


def layer_bytes_per_token(kv_cache: KvCacheConfig, engine: EngineConfig, model: Mapping[str, Any]) -> int:
    """Bytes of K and V of one token in one layer on one rank."""
    if "kv_lora_rank" in model or "num_attention_heads" not in model:
        message = (
            "this model's KV size cannot be told from its config; set kv_cache.block_size_tokens instead"
        )
        raise Conflict((_PAGE_SIZE,), message).as_error()
    heads = int(model["num_attention_heads"])
    kv_heads = int(model.get("num_key_value_heads") or heads)
    head_size = int(model.get("head_dim") or model["hidden_size"] // heads)
    kv_heads_per_rank = max(1, kv_heads // engine.tensor_parallel)
    return 2 * kv_heads_per_rank * head_size * _BYTES[_kv_dtype(kv_cache, engine, model)]


def _kv_dtype(kv_cache: KvCacheConfig, engine: EngineConfig, model: Mapping[str, Any]) -> str:
    """As vLLM chooses: the cache's own, else the weights', where float32 checkpoints run in 16 bits."""
    if kv_cache.hbm_dtype != "auto":
        return kv_cache.hbm_dtype
    if engine.dtype != "auto":
        return engine.dtype
    own = str(model.get("dtype") or model.get("torch_dtype") or _DEFAULT_DTYPE)
    return own if own in ("bfloat16", "float16") else _DEFAULT_DTYPE
