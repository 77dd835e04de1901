"""`kv_cache.page_size_kb` in tokens: how many tokens' KV of one layer fit into a page of one rank."""

from typing import Any

from llmserve.core.errors import ManifestError

_STEP_TOKENS = 16


def block_size_tokens(page_size_kb: int, hf_config: Any, kv_dtype_bytes: int, tensor_parallel: int) -> int:
    """The largest multiple of 16 tokens that fits. hf_config: the model's transformers config.
    Errors: ManifestError when not even 16 tokens do."""
    per_token = kv_bytes_per_token_layer(hf_config, kv_dtype_bytes, tensor_parallel)
    tokens = page_size_kb * 1024 // per_token // _STEP_TOKENS * _STEP_TOKENS
    if tokens == 0:
        least = -(-_STEP_TOKENS * per_token // 1024)
        raise ManifestError(
            f"kv_cache.page_size_kb: {page_size_kb} KiB hold no {_STEP_TOKENS} tokens of this model "
            f"({per_token} bytes a token and layer); use at least {least}"
        )
    return tokens


def kv_bytes_per_token_layer(hf_config: Any, kv_dtype_bytes: int, tensor_parallel: int) -> int:
    heads = hf_config.num_attention_heads
    kv_heads = getattr(hf_config, "num_key_value_heads", None) or heads
    head_dim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // heads
    return int(2 * max(1, kv_heads // tensor_parallel) * head_dim * kv_dtype_bytes)
