"""What a right manifest cannot have in this release, in this environment or with this model. Pure.

Each role checks its own part before its start; `apply`, `up` and `doctor` check everything before any process
starts (runner/preflight.py). What is known of the machine and of the model is an argument.

Of a model, only its config.json is read. Where a kind of model needs a closer look nothing is concluded: vLLM
looks closer when it starts.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmserve.config.conflict import Conflict, Path
from llmserve.config.messages import did_you_mean
from llmserve.config.schema import ApiKey, EngineConfig, KvCacheConfig, Manifest, State
from llmserve.config.schema.section import path_text
from llmserve.core.errors import ManifestError

MODEL_SOURCE = ("models", "primary", "source")
SEVERAL_BLOCK_SIZES = "models whose layers have KV blocks of different sizes are not available yet"
NO_FULL_ATTENTION = "models without a layer that sees the whole prompt are not available yet"

_GIB = 1 << 30
_LEAST_BLOCK_TOKENS = 16
_ANY_LENGTH = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"  # with it vLLM takes any length
_PAGE_SIZE = "kv_cache.page_size_kb"
_MAX_MODEL_LEN = "engine.max_model_len"
_SOURCE = ".".join(MODEL_SOURCE)
# The keys that vLLM's model_arch_config_convertor.py reads; the smallest value counts.
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
# With these kinds of RoPE scaling the length in the config is already the scaled one.
_SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
_FULL = "full_attention"
# To layers that see a chunk of the prompt (Llama 4) vLLM gives blocks as if they saw all.
_KNOWN_LAYERS = {_FULL, "sliding_attention", "chunked_attention"}
# Keys that only models with a state instead of KV blocks have: those of Jamba, Bamba and Zamba 2; Nemotron-H;
# Qwen3-Next; Kimi Linear; Mamba; LFM2; Ring Linear.
_STATE_KEYS = (
    "mamba_",
    "ssm_",
    *("linear_num_", "linear_conv_", "full_attention_interval"),
    "linear_attn_config",
    "state_size",
    "conv_L_cache",
    "layer_group_size",
)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
_DEFAULT_DTYPE = "bfloat16"
_MTLS, _TLS, _MODE = "security.mtls", "security.tls", "deployment.mode"
_DIRECTORY, _REDIS_CA = f"{_MTLS}.directory", "state.redis.ca"


@dataclass(frozen=True, slots=True)
class Parsers:
    """The names of vLLM's parsers."""

    tool: Collection[str]
    reasoning: Collection[str]


def wire_refusals(manifest: Manifest) -> Iterator[Conflict]:
    """Yields keys about TLS that a cluster cannot have where it runs."""
    redis = manifest.state.redis
    if redis is not None and redis.ca is not None and not redis.url.startswith("rediss://"):
        yield Conflict.at("has no effect without TLS: write rediss:// in state.redis.url", _REDIS_CA)
    yield from local_wires(manifest) if manifest.deployment.mode == "local" else pod_wires(manifest)


def local_wires(manifest: Manifest) -> Iterator[Conflict]:
    """Yields keys about TLS that a cluster on one machine lacks. A flag of the command line may decide where
    it runs."""
    mtls = manifest.security.mtls
    if mtls is not None and mtls.directory is None:
        yield Conflict.at("must be set on one machine; `llmserve certs init` makes it", _DIRECTORY)


def pod_wires(manifest: Manifest) -> Iterator[Conflict]:
    """Yields keys about TLS that pods cannot have. A flag of the command line may decide where it runs."""
    mtls, redis, transfer = manifest.security.mtls, manifest.state.redis, manifest.transfer
    if manifest.security.tls is not None:
        message = "is not available on Kubernetes; let an Ingress or a Gateway have the certificate"
        yield Conflict.at(message, _TLS, _MODE)
    if redis is not None and redis.ca is not None:
        yield Conflict.at("is not available on Kubernetes: pods have no such file", _REDIS_CA, _MODE)
    if mtls is None:
        return
    if not manifest.observability.metrics:
        message = "must be on with security.mtls: probes ask for health on the port of the metrics"
        yield Conflict.at(message, "observability.metrics", _MTLS)
    if "engine_order" in transfer.model_fields_set and transfer.engine_order and not mtls.plain_transports:
        names = ", ".join(transfer.engine_order)
        message = f"has {names}, which encrypt nothing: remove it, or set {_MTLS}.plain_transports to true"
        yield Conflict.at(message, "transfer.engine_order", _MTLS)


def unusable_api_keys(keys: Sequence[ApiKey], environment: Mapping[str, str]) -> Iterator[Conflict]:
    """Yields keys whose variable is not set, and those that an entry before has, too. environment: that of
    the apiserver."""
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        path: Path = ("security", "api_keys", index)
        secret = key.key or environment.get(key.key_env or "")
        if not secret:
            message = f"the environment variable {key.key_env} with the key of {key.tenant} is not set"
            yield Conflict(((*path, "key_env"),), message)
        elif (same := first.setdefault(secret, index)) != index:
            other: Path = ("security", "api_keys", same)
            message = f"is the same key as {path_text(other)}, of tenant '{keys[same].tenant}'"
            yield Conflict((path, other), message)


def unset_password(state: State, environment: Mapping[str, str]) -> Iterator[Conflict]:
    """environment: that of the router."""
    variable = state.redis.password_env if state.redis and state.backend == "redis" else None
    if variable is not None and not environment.get(variable):
        yield Conflict.at(f"the environment variable {variable} is not set", "state.redis.password_env")


def unknown_parsers(engine: EngineConfig, known: Parsers) -> Iterator[Conflict]:
    """known: the parsers of the vLLM that the apiservers run."""
    wanted = {
        "tool_call_parser": (engine.tool_call_parser, known.tool),
        "reasoning_parser": (engine.reasoning_parser, known.reasoning),
    }
    for key, (name, names) in wanted.items():
        if name is not None and name not in names:
            hint = did_you_mean(name, sorted(names)) or f"; it has {', '.join(sorted(names))}"
            yield Conflict.at(f"vLLM has no parser '{name}'{hint}", f"engine.{key}")


def model_refusals(
    engine: EngineConfig,
    kv_cache: KvCacheConfig,
    model: Mapping[str, Any],
    draft: Mapping[str, Any] | None = None,
) -> Iterator[Conflict]:
    """Yields what the model does not allow. model: its config.json. draft: that of its draft model, whose KV
    takes memory beside its own."""
    yield from too_long(engine, model)
    if engine.kind == "sim":
        return
    yield from unknown_layers(model)
    try:
        block = block_size_tokens(kv_cache, engine, model) or _LEAST_BLOCK_TOKENS
    except ManifestError as error:
        yield Conflict.of(error)
        return
    yield from _too_little_memory(engine, kv_cache, model, block, draft)


def too_long(engine: EngineConfig, model: Mapping[str, Any]) -> Iterator[Conflict]:
    """Refuses more tokens than the model was made for."""
    most = longest_tokens(model)
    if any(one.name == _ANY_LENGTH and one.value == "1" for one in engine.env):
        return
    if "hf_overrides" in engine.options:  # may scale the rotary embedding: vLLM looks closer
        return
    if most is not None and engine.max_model_len is not None and engine.max_model_len > most:
        message = f"the model was made for at most {most} tokens, got {engine.max_model_len}"
        yield Conflict.at(message, _MAX_MODEL_LEN, _SOURCE)


def _too_little_memory(
    engine: EngineConfig,
    kv_cache: KvCacheConfig,
    model: Mapping[str, Any],
    block: int,
    draft: Mapping[str, Any] | None,
) -> Iterator[Conflict]:
    """vLLM needs room for one request of the greatest length."""
    models = [model] if draft is None else [model, draft]
    layers, tokens = [uniform_layers(one) for one in models], engine.max_model_len or longest_tokens(model)
    if None in layers or tokens is None:
        return
    token_bytes = sum(
        (count or 0) * layer_bytes_per_token(kv_cache, engine, one)
        for count, one in zip(layers, models, strict=True)
    )
    needed = -(-tokens // block) * block * token_bytes
    has = int(kv_cache.memory_gb * _GIB)
    if needed > has:
        fits = has // (block * token_bytes) * block
        whose = " with that of the draft, head or MTP layers" if draft else ""
        message = (
            f"one request of {tokens} tokens takes {_gib(needed)} GiB of KV{whose}, got "
            f"{kv_cache.memory_gb:g}; "
            f"set it to {_gib(needed)} or more, or {_MAX_MODEL_LEN} to {fits} or less"
        )
        yield Conflict.at(message, "kv_cache.memory_gb", _MAX_MODEL_LEN)


def _gib(size_bytes: int) -> str:
    """Rounds up, so that the value suffices."""
    return f"{-(-size_bytes * 1000 // _GIB) / 1000:g}"


# -- the length and the KV of a model, from its config.json without vLLM


def language_part(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the config of the language part of a model that also sees or hears."""
    inner = model.get("text_config")
    return inner if isinstance(inner, Mapping) else model


def longest_tokens(model: Mapping[str, Any]) -> int | None:
    """Returns the most tokens of prompt and answer together, as vLLM computes them; None: not known."""
    config = language_part(model)
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
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    each_kind_of_layer = [one for one in rope.values() if isinstance(one, Mapping)]
    factor = 1.0
    for one in each_kind_of_layer or [rope]:
        if one.get("rope_type", one.get("type")) not in _SCALED_ALREADY:
            factor = one.get("factor") or factor
    return factor


def unknown_layers(model: Mapping[str, Any]) -> Iterator[Conflict]:
    """Refuses layers whose KV can be neither handed over nor stored. Layers that see the whole prompt and
    layers that see a part of it may be mixed."""
    config = language_part(model)
    kinds = set(config.get("layer_types") or ()) - _KNOWN_LAYERS
    if not kinds and any(key.startswith(_STATE_KEYS) for key in config):
        kinds = {"state space"}
    if kinds:
        yield Conflict.at(kinds_of_layers(kinds), _SOURCE)
    if (wide := config.get("global_head_dim")) is not None and wide != config.get("head_dim"):
        yield Conflict.at(SEVERAL_BLOCK_SIZES, _SOURCE)


def kinds_of_layers(kinds: Collection[str]) -> str:
    return f"models with layers of the kind {', '.join(sorted(kinds))} are not available yet"


def uniform_layers(model: Mapping[str, Any]) -> int | None:
    """Returns how many layers keep all of a request's KV; None: some layers do not, or it is not known."""
    layers = model.get("num_hidden_layers")
    unusual = "kv_lora_rank" in model or "num_kv_shared_layers" in model or model.get("is_encoder_decoder")
    if not isinstance(layers, int) or "num_attention_heads" not in model:
        return None
    return None if has_windows(model) or unusual else layers


def has_windows(model: Mapping[str, Any]) -> bool:
    """Returns whether some layers see only a part of the prompt."""
    kinds = set(model.get("layer_types") or (_FULL,))
    return kinds != {_FULL} or bool(model.get("sliding_window") and model.get("use_sliding_window", True))


def block_size_tokens(kv_cache: KvCacheConfig, engine: EngineConfig, model: Mapping[str, Any]) -> int | None:
    """Returns the tokens of a block; None for the engine's default. Errors: ManifestError when a page is too
    small for 16 tokens, or when the config does not tell the KV size of the model."""
    if kv_cache.page_size_kb is None:
        return kv_cache.block_size_tokens
    token_bytes = layer_bytes_per_token(kv_cache, engine, model)
    tokens = kv_cache.page_size_kb * 1024 // token_bytes // _LEAST_BLOCK_TOKENS * _LEAST_BLOCK_TOKENS
    if tokens == 0:
        least = -(-token_bytes * _LEAST_BLOCK_TOKENS // 1024)
        message = (
            f"must be at least {least} for this model ({_LEAST_BLOCK_TOKENS} tokens of {token_bytes} bytes), "
            f"got {kv_cache.page_size_kb}"
        )
        raise Conflict.at(message, _PAGE_SIZE).as_error()
    return tokens


def layer_bytes_per_token(kv_cache: KvCacheConfig, engine: EngineConfig, model: Mapping[str, Any]) -> int:
    """Returns the bytes of K and V of one token in one layer on one rank. Errors: ManifestError."""
    if "kv_lora_rank" in model or "num_attention_heads" not in model:
        message = (
            "this model's KV size cannot be told from its config; set kv_cache.block_size_tokens instead"
        )
        raise Conflict.at(message, _PAGE_SIZE).as_error()
    heads = int(model["num_attention_heads"])
    kv_heads = int(model.get("num_key_value_heads") or heads)
    head_size = int(model.get("head_dim") or model["hidden_size"] // heads)
    kv_heads_per_rank = max(1, kv_heads // engine.tensor_parallel)
    return 2 * kv_heads_per_rank * head_size * _BYTES[_kv_dtype(kv_cache, engine, model)]


def _kv_dtype(kv_cache: KvCacheConfig, engine: EngineConfig, model: Mapping[str, Any]) -> str:
    """Chooses as vLLM does: the cache's type, or else the weights'; float32 checkpoints run in 16 bits."""
    if kv_cache.hbm_dtype != "auto":
        return kv_cache.hbm_dtype
    if engine.dtype != "auto":
        return engine.dtype
    own = str(model.get("dtype") or model.get("torch_dtype") or _DEFAULT_DTYPE)
    return own if own in ("bfloat16", "float16") else _DEFAULT_DTYPE
