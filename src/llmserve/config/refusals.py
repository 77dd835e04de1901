"""What a right manifest cannot have: in this release, in this environment, with this model. Pure.

Each role asks before its start about what concerns it; `apply`, `up` and `doctor` ask about all of it before
anything starts (runner/preflight.py). What is known of the machine and of the model is an argument.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.config.conflict import Conflict, Path
from llmserve.config.messages import did_you_mean
from llmserve.config.schema import ApiKey, EngineConfig, KvCacheConfig, State
from llmserve.core.errors import ManifestError

# As vLLM's model_arch_config_convertor.py; the smallest counts.
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Of these the length in the config is the scaled one.
_SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
_FULL = "full_attention"


def text_config(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that also sees or hears: its language part."""
    inner = model.get("text_config")
    return inner if isinstance(inner, Mapping) else model


def longest_tokens(model: Mapping[str, Any]) -> int | None:
    """Prompt and answer that the model was made for, as vLLM takes it."""
    config = text_config(model)
    if own := config.get("model_max_length"):
        lengths = [own]
    else:
        lengths = [config[name] for name in _LENGTHS if config.get(name) is not None]
    if not lengths or not all(isinstance(one, int) for one in lengths):
        return None
    return int(min(lengths) * _rope_factor(config))


def _rope_factor(config: Mapping[str, Any]) -> float:
    if "gemma3" in str(config.get("model_type", "")):
        return 1.0
    factor = 1.0
    for rope in _ropes(config):
        if rope.get("rope_type", rope.get("type")) not in _SCALED_ALREADY:
            factor = rope.get("factor") or factor
    return factor


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """One, or one for each kind of layer."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [one for one in rope.values() if isinstance(one, Mapping)]
    yield from nested or [rope]


def has_several_kv_groups(model: Mapping[str, Any]) -> bool:
    """Layers with different kinds of attention have KV blocks of different kinds."""
    return len(set(text_config(model).get("layer_types") or ())) > 1


def uniform_layers(model: Mapping[str, Any]) -> int | None:
    """How many layers keep all of a request's KV; None: some do not, or it cannot be told."""
    layers = model.get("num_hidden_layers")
    kinds = set(model.get("layer_types") or (_FULL,))
    windowed = model.get("sliding_window") and model.get("use_sliding_window", True)
    unusual = "kv_lora_rank" in model or "num_kv_shared_layers" in model or model.get("is_encoder_decoder")
    if not isinstance(layers, int) or "num_attention_heads" not in model:
        return None
    return None if windowed or unusual or kinds != {_FULL} else layers


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


_GIB = 1 << 30
_LEAST_BLOCK_TOKENS = 16
_LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"  # with it vLLM takes any length
_DEVICE: Path = ("engine", "device")
_MAX_MODEL_LEN: Path = ("engine", "max_model_len")
_MEMORY: Path = ("kv_cache", "memory_gb")
_SOURCE: Path = ("models", "primary", "source")

SEVERAL_KV_GROUPS = "models with several KV cache groups (hybrid attention) are not available yet"


@dataclass(frozen=True, slots=True)
class Parsers:
    """The names of vLLM's parsers."""

    tool: Collection[str]
    reasoning: Collection[str]


def unset_api_keys(keys: Iterable[ApiKey], environment: Mapping[str, str]) -> Iterator[Conflict]:
    """environment: of the apiserver."""
    for index, key in enumerate(keys):
        if key.key is None and not environment.get(key.key_env or ""):
            message = f"the environment variable {key.key_env} with the key of {key.tenant} is not set"
            yield Conflict((("security", "api_keys", index, "key_env"),), message)


def unset_password(state: State, environment: Mapping[str, str]) -> Iterator[Conflict]:
    """environment: of the router."""
    variable = state.redis.password_env if state.redis and state.backend == "redis" else None
    if variable is not None and not environment.get(variable):
        message = f"the environment variable {variable} is not set"
        yield Conflict((("state", "redis", "password_env"),), message)


def unknown_parsers(engine: EngineConfig, known: Parsers) -> Iterator[Conflict]:
    """known: of the vLLM that the apiservers have."""
    wanted = {
        "tool_call_parser": (engine.tool_call_parser, known.tool),
        "reasoning_parser": (engine.reasoning_parser, known.reasoning),
    }
    for key, (name, names) in wanted.items():
        if name is not None and name not in names:
            hint = did_you_mean(name, sorted(names)) or f"; it has {', '.join(sorted(names))}"
            yield Conflict((("engine", key),), f"vLLM has no parser '{name}'{hint}")


def engine_on_gpu() -> Conflict:
    """Of every engine on a GPU, whatever its role: its connector has to address the KV."""
    message = "engines on GPUs are not available yet: KV hand-over reaches host memory only; use cpu"
    return Conflict((_DEVICE,), message)


def model_refusals(
    engine: EngineConfig, kv_cache: KvCacheConfig, model: Mapping[str, Any]
) -> Iterator[Conflict]:
    """model: its config.json. What that does not tell is not refused: vLLM looks closer when it starts."""
    yield from too_long(engine, model)
    if engine.kind == "sim":
        return
    if has_several_kv_groups(model):
        yield Conflict((_SOURCE,), SEVERAL_KV_GROUPS)
    try:
        block = block_size_tokens(kv_cache, engine, model) or _LEAST_BLOCK_TOKENS
    except ManifestError as error:
        yield Conflict.of(error)
        return
    yield from _too_little_memory(engine, kv_cache, model, block)


def too_long(engine: EngineConfig, model: Mapping[str, Any]) -> Iterator[Conflict]:
    """More tokens than the model was made for."""
    most = longest_tokens(model)
    if any(one.name == _LONGER and one.value == "1" for one in engine.env):
        return
    if most is not None and engine.max_model_len is not None and engine.max_model_len > most:
        message = f"the model was made for at most {most} tokens, got {engine.max_model_len}"
        yield Conflict((_MAX_MODEL_LEN, _SOURCE), message)


def _too_little_memory(
    engine: EngineConfig, kv_cache: KvCacheConfig, model: Mapping[str, Any], block: int
) -> Iterator[Conflict]:
    """vLLM wants room for one request of the greatest length."""
    layers, tokens = uniform_layers(model), engine.max_model_len or longest_tokens(model)
    if layers is None or tokens is None:
        return
    token_bytes = layers * layer_bytes_per_token(kv_cache, engine, model)
    needed = -(-tokens // block) * block * token_bytes
    has = int(kv_cache.memory_gb * _GIB)
    if needed > has:
        fits = has // (block * token_bytes) * block
        message = (
            f"one request of {tokens} tokens takes {_gib(needed)} GiB of KV, got {kv_cache.memory_gb:g}; "
            f"set it to {_gib(needed)} or more, or engine.max_model_len to {fits} or less"
        )
        yield Conflict((_MEMORY, _MAX_MODEL_LEN), message)


def _gib(size_bytes: int) -> str:
    """Rounded up: what is set to it suffices."""
    return f"{-(-size_bytes * 1000 // _GIB) / 1000:g}"
