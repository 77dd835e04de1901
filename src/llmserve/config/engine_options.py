"""Which of vLLM's arguments `engine.options` may set, and which key of the manifest is for another one. Pure.

An argument that LLMServe sets, or that would break what it builds on (the names of blocks, their hand-over,
its own processes), is refused. Whether vLLM has an argument and takes its value, only vLLM knows:
engines/vllm/sources.py, engines/vllm/options.py.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

from llmserve.config.conflict import Conflict, Path
from llmserve.config.messages import did_you_mean
from llmserve.config.schema import EngineConfig, Manifest

_DIGEST_LENGTH = 16

KEY_OF = {
    "model": "models.primary.source",
    "model_weights": "models.primary.source",
    "served_model_name": "models.primary.name",
    "revision": "models.primary.revision",
    "runner": "engine.task",
    "convert": "engine.task",
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_model_len",
    "max_logprobs": "engine.max_logprobs",
    "max_num_batched_tokens": "engine.max_batched_tokens",
    "max_num_seqs": "engine.max_decode_concurrency",
    "long_prefill_token_threshold": "engine.prefill_long_prompt_tokens",
    "enable_chunked_prefill": "engine.chunked_prefill",
    "tensor_parallel_size": "engine.tensor_parallel",
    "pipeline_parallel_size": "engine.pipeline_parallel",
    "quantization": "engine.quantization",
    "enforce_eager": "engine.enforce_eager",
    "optimization_level": "engine.optimization_level",
    "reasoning_parser": "engine.reasoning_parser",
    "structured_outputs_config": "engine.grammar_backend",
    "speculative_config": "engine.speculation",
    "spec_method": "engine.speculation",
    "spec_model": "engine.speculation",
    "spec_tokens": "engine.speculation",
    "per_request_spec_decode_metrics": "engine.speculation",
    "kv_cache_dtype": "kv_cache.hbm_dtype",
    "block_size": "kv_cache.block_size_tokens",
    "kv_cache_memory_bytes": "kv_cache.memory_gb",
    "gpu_memory_utilization": "kv_cache.memory_gb",
    "num_gpu_blocks_override": "kv_cache.memory_gb",
    "kv_offloading_size": "storageClasses",
    "kv_offloading_backend": "storageClasses",
    "kv_transfer_config": "transfer",
    "enable_lora": "lora",
    "max_loras": "lora.slots",
    "max_cpu_loras": "lora.slots",
    "max_lora_rank": "lora.max_rank",
    "lora_target_modules": "lora.target_modules",
    "default_mm_loras": "models.adapters",
    "lora_dtype": "engine.dtype",
    "max_num_queued_reqs": "scheduling.max_queued_requests",
    "max_num_queued_tokens": "scheduling.max_queued_requests",
    "scheduling_policy": "scheduling",
    "stream_interval": "api.stream_interval",
    "otlp_traces_endpoint": "observability.tracing",
    "collect_detailed_traces": "observability.tracing",
    "device_ids": "deployment.local",
}
"""The key of the manifest that sets an argument of vLLM."""

_HASHES = "the names of KV blocks depend on it"
_PLACES = "KV is handed over between equal ranks, each with whole tokens"
_PROCESSES = "LLMServe starts the processes of vLLM"
_OWN_CLASS = "LLMServe has a class of its own there"
_LOGS = "LLMServe writes the logs (observability.log_level)"
_TOKENS = "engines get and return tokens"

REFUSED = {
    "enable_prefix_caching": _HASHES,
    "prefix_caching_hash_algo": _HASHES,
    "prefix_match_unit": _HASHES,
    "kv_events_config": _HASHES,
    "disable_hybrid_kv_cache_manager": "the KV groups of a model depend on it",
    "kv_sharing_fast_prefill": "a prefill engine would leave out KV that decode needs",
    "prefill_context_parallel_size": _PLACES,
    "decode_context_parallel_size": _PLACES,
    "dcp_kv_cache_interleave_size": _PLACES,
    "cp_kv_cache_interleave_size": _PLACES,
    "enable_elastic_ep": _PLACES,
    "nnodes": _PROCESSES,
    "node_rank": _PROCESSES,
    "master_addr": _PROCESSES,
    "master_port": _PROCESSES,
    "distributed_executor_backend": _PROCESSES,
    "shutdown_timeout": _PROCESSES,
    "enable_fault_tolerance": _PROCESSES,
    "fault_tolerance_config": _PROCESSES,
    "scheduler_cls": _OWN_CLASS,
    "worker_cls": _OWN_CLASS,
    "worker_extension_cls": _OWN_CLASS,
    "disable_log_stats": "the load of an engine is read from them",
    "logging_config": _LOGS,
    "log_level": _LOGS,
    "log_config_file": _LOGS,
    "aggregate_engine_logging": _LOGS,
    "tokens_only": _TOKENS,
    "skip_tokenizer_init": _TOKENS,
    "enable_prompt_embeds": _TOKENS,
    "tokenizer": "a model has its tokenizer in its directory",
    "tokenizer_revision": "a model has its tokenizer in its directory",
    "download_dir": "a model is prepared before engines start",
    "hf_token": "a manifest keeps no secret: set HF_TOKEN in the environment",
    "profiler_config": "`llmserve profile` records what an engine computes",
    "ec_transfer_config": "the encoder of a model runs in the engine",
    "weight_transfer_config": "the weights of an engine do not change: its stored KV would be wrong",
}
"""Why an argument of vLLM cannot be set, where no key sets it."""

_REFUSED_FAMILIES = {"data_parallel_": "deployment.replicas has the number of engines", "_": _PROCESSES}
_PICKLES = ("pt", "npcache")

FOR_TEXT = frozenset(
    {
        "config_format",
        "generation_config",
        "hf_config_path",
        "hf_overrides",
        "interleave_mm_strings",
        "limit_mm_per_prompt",
        "logits_processors",
        "logprobs_mode",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "override_generation_config",
        "pooler_config",
        "tokenizer_mode",
        "trust_remote_code",
    }
)
"""The arguments on which the apiservers' part of vLLM depends as well: it reads the model's configuration,
makes tokens of text, and checks requests."""


def option_rules(manifest: Manifest) -> Iterator[Conflict]:
    """Refuses what is known to be wrong without vLLM."""
    for name, value in manifest.engine.options.items():
        if why := _why_not(name, value):
            yield Conflict((_path(name),), why)


def _why_not(name: str, value: Any) -> str:
    """Returns why the manifest cannot set an argument; empty when it can."""
    if name in KEY_OF:
        return f"set {KEY_OF[name]} instead"
    if name == "load_format" and value in _PICKLES:
        return "only safetensors are loaded: pickles can run any code"
    family = next((why for start, why in _REFUSED_FAMILIES.items() if name.startswith(start)), "")
    why = REFUSED.get(name, family)
    return f"cannot be set: {why}" if why else ""


def unknown_options(engine: EngineConfig, known: Collection[str]) -> Iterator[Conflict]:
    """known: the names of vLLM's arguments."""
    for name in engine.options:
        if name not in known:
            hint = did_you_mean(name, sorted(known))
            yield Conflict((_path(name),), f"vLLM has no argument '{name}'{hint}")


def wrong_option(name: str, why: str) -> Conflict:
    """why: what vLLM says of the value."""
    return Conflict((_path(name),), f"vLLM does not take this value: {why}")


def options_digest(engine: EngineConfig) -> str:
    """Names what of the engine's settings vLLM alone understands; empty when there is nothing. It is part of
    the identity of KV: which arguments change the numbers in it, nobody can list for all models."""
    settings = {**engine.options}
    if engine.quantization is not None:
        settings["quantization"] = engine.quantization
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH] if settings else ""


def _path(name: str) -> Path:
    return ("engine", "options", name)
