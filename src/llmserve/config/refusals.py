"""What a right manifest cannot have: in this release, in this environment, with this model. Pure.

Each role asks before its start about what concerns it; `apply`, `up` and `doctor` ask about all of it before
anything starts (runner/preflight.py). What is known of the machine and of the model is an argument.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.config.conflict import Conflict, Path
from llmserve.config.kv_page import block_size_tokens, layer_bytes_per_token
from llmserve.config.messages import did_you_mean
from llmserve.config.model_shape import has_several_kv_groups, longest_tokens, uniform_layers
from llmserve.config.schema import ApiKey, EngineConfig, KvCacheConfig, State
from llmserve.core.errors import ManifestError

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
