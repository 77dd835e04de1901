"""Refuses settings of engines and of their transfers that exclude each other. Pure."""

from collections.abc import Iterator

from llmserve.config.conflict import Conflict, Path, named_twice
from llmserve.config.schema import Manifest

_RESERVED_VARIABLES = {
    "VLLM_API_KEY": "would lock all clients out: their keys are security.api_keys",
    "CUDA_VISIBLE_DEVICES": "is set for each engine: the GPUs are divided between them",
    "PYTHONHASHSEED": "would change the identity of KV blocks",
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "is set by LLMServe: the hashes are the identity of KV blocks",
    "VLLM_WORKER_MULTIPROC_METHOD": "is set by LLMServe",
    "VLLM_RPC_BASE_PATH": "is set by LLMServe",
}


def _transports(manifest: Manifest) -> Iterator[Conflict]:
    yield from named_twice(("transfer", "engine_order"), manifest.transfer.engine_order, "{}")


def _block_size(manifest: Manifest) -> Iterator[Conflict]:
    size, page, cache = "kv_cache.block_size_tokens", "kv_cache.page_size_kb", manifest.kv_cache
    values = {size: cache.block_size_tokens, page: cache.page_size_kb}
    if manifest.engine.kind == "sim":
        message = "the simulated engine has its own; set engine.sim.block_size_tokens"
        for key in (key for key, value in values.items() if value is not None):
            yield Conflict.at(message, key, "engine.kind")
    elif None not in values.values():
        yield Conflict.at("kv_cache.page_size_kb already sets the size of a block; keep one", size, page)


def _batch(manifest: Manifest) -> Iterator[Conflict]:
    engine, key = manifest.engine, "engine.max_batched_tokens"
    if engine.max_batched_tokens is None:
        return
    got = f"got {engine.max_batched_tokens}"
    if engine.max_batched_tokens < engine.max_decode_concurrency:
        message = f"must be at least engine.max_decode_concurrency ({engine.max_decode_concurrency}), {got}"
        yield Conflict.at(message, key, "engine.max_decode_concurrency")
    if not engine.chunked_prefill and engine.max_batched_tokens < (engine.max_model_len or 0):
        message = (
            "without chunked_prefill a prompt is computed in one step, so it must be at least "
            f"engine.max_model_len ({engine.max_model_len}), {got}"
        )
        yield Conflict.at(message, key, "engine.chunked_prefill", "engine.max_model_len")


def _task(manifest: Manifest) -> Iterator[Conflict]:
    task = manifest.engine.task
    if task == "generate":
        return
    if manifest.engine.kind == "sim":
        yield Conflict.at("the simulated engine only generates", "engine.task", "engine.kind")
    if manifest.deployment.disaggregated:
        message = f"a model that is to {task} decodes nothing: it needs deployment.disaggregated: false"
        yield Conflict.at(message, "engine.task", "deployment.disaggregated")


def _decode_slots(manifest: Manifest) -> Iterator[Conflict]:
    kept, places = manifest.engine.min_decode_slots, manifest.engine.max_decode_concurrency
    if kept >= places:
        message = (
            f"must leave a place for a prompt: at most {places - 1} "
            f"of engine.max_decode_concurrency ({places}), got {kept}"
        )
        yield Conflict.at(message, "engine.min_decode_slots", "engine.max_decode_concurrency")


def _long_prompts(manifest: Manifest) -> Iterator[Conflict]:
    engine, key = manifest.engine, "engine.prefill_long_prompt_tokens"
    tokens, longest = engine.prefill_long_prompt_tokens, engine.max_model_len
    if tokens is not None and not engine.chunked_prefill:
        message = "needs chunked_prefill: otherwise every prompt is computed in one step"
        yield Conflict.at(message, key, "engine.chunked_prefill")
    if tokens is not None and longest is not None and tokens > longest:
        message = f"must be at most engine.max_model_len ({longest}), got {tokens}"
        yield Conflict.at(message, key, "engine.max_model_len")


def _engine_env(manifest: Manifest) -> Iterator[Conflict]:
    names = [one.name for one in manifest.engine.env]
    for index, name in enumerate(names):
        path: Path = ("engine", "env", index)
        if name in _RESERVED_VARIABLES:
            yield Conflict((path,), f"{name} {_RESERVED_VARIABLES[name]}")
        elif name.startswith("LLMSERVE_"):
            yield Conflict((path,), f"{name} is for LLMServe itself, which the manifest configures")
        elif names.index(name) < index:
            yield Conflict((path, ("engine", "env", names.index(name))), f"names {name} twice")


RULES = (_transports, _block_size, _batch, _task, _decode_slots, _long_prompts, _engine_env)
