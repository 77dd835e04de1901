"""The manifest's engine settings as vLLM's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm.config import (
    KVEventsConfig,
    KVTransferConfig,
    ProfilerConfig,
    StructuredOutputsConfig,
    VllmConfig,
)
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor import Executor, UniProcExecutor

from llmserve.config.engine_options import options_digest
from llmserve.config.refusals import block_size_tokens
from llmserve.config.schema import EngineConfig, Speculation
from llmserve.core.adapters import LoraShape
from llmserve.core.request import WorkerRole
from llmserve.engines.connector.settings import ConnectorSettings
from llmserve.engines.spec import EngineSpec, transfer_policy
from llmserve.engines.vllm.options import typed_options
from llmserve.models.directory import read_config

PROFILES = "profiles"
CONNECTOR = "LLMServeConnector"
CONNECTOR_MODULE = "llmserve.engines.connector.connector"
STORE_MODULE = "llmserve.engines.store.spec"
CPU_WORKER = "llmserve.engines.vllm.cpu_worker.CpuWorker"
CPU_LORA_WORKER = "llmserve.engines.vllm.cpu_lora.CpuLoraWorker"
BOTH_MODULE = "llmserve.engines.vllm.both"
SCHEDULER_MODULE = "llmserve.engines.speculation.scheduler"

_KV_ROLE = {
    WorkerRole.PREFILL: "kv_producer",
    WorkerRole.DECODE: "kv_consumer",
    WorkerRole.AGGREGATED: "kv_both",
}


def is_eager(engine: EngineConfig) -> bool:
    """Whether the model is not compiled. Compiling takes a minute and gives 15% on CPU (measured): not worth
    it by default there."""
    return current_platform.is_cpu() if engine.enforce_eager is None else engine.enforce_eager


def compiles(engine: EngineConfig) -> bool:
    """Whether torch compiles anything in the engine. On a GPU, the small functions that vLLM compiles beside
    the model save memory, and what they need is installed with torch."""
    return not current_platform.is_cpu() or needs_compiler(engine)


def needs_compiler(engine: EngineConfig) -> bool:
    """Whether the engine compiles C++."""
    return current_platform.is_cpu() and not is_eager(engine)


def engine_args(spec: EngineSpec, kv_events_endpoint: str, card_path: str) -> AsyncEngineArgs:
    engine = spec.engine
    optional: dict[str, Any] = {
        "max_model_len": engine.max_model_len,
        "max_num_batched_tokens": engine.max_batched_tokens,
        "long_prefill_token_threshold": engine.prefill_long_prompt_tokens,
        "block_size": _block_size(spec),
        "enforce_eager": is_eager(engine),
        "quantization": engine.quantization,
        "optimization_level": engine.optimization_level,
        "worker_cls": _worker_class(spec),
    }
    return AsyncEngineArgs(
        model=str(spec.model_dir),
        served_model_name=[spec.model_name],
        dtype=engine.dtype,
        max_logprobs=engine.max_logprobs,
        kv_cache_dtype=spec.kv_cache.hbm_dtype,
        kv_cache_memory_bytes=int(spec.kv_cache.memory_gb * 2**30),
        tensor_parallel_size=engine.tensor_parallel,
        max_num_seqs=engine.max_decode_concurrency,
        enable_chunked_prefill=engine.chunked_prefill,
        enable_prefix_caching=True,
        prefix_caching_hash_algo="sha256_cbor",
        structured_outputs_config=StructuredOutputsConfig(backend=engine.grammar_backend),
        reasoning_parser=engine.reasoning_parser or "",
        kv_transfer_config=_kv_transfer(spec, card_path),
        kv_events_config=KVEventsConfig(
            enable_kv_cache_events=True, publisher="zmq", endpoint=kv_events_endpoint
        ),
        profiler_config=_profiler(card_path),
        runner="generate" if engine.task == "generate" else "pooling",
        **{name: value for name, value in optional.items() if value is not None},
        **_lora(spec.lora),
        **_speculation(spec),
        **typed_options(engine),
    )


def _profiler(card_path: str) -> ProfilerConfig:
    """A profiler that costs nothing until it is started. Without stacks, whose cost would be what is seen.
    The engine stands still while it ends, so it writes the trace and no more: compressing it takes longer,
    and vLLM's table (that of CPUs: CpuWorker) ten times as long."""
    folder = Path(card_path).absolute().parent / PROFILES
    return ProfilerConfig(
        profiler="torch",
        torch_profiler_dir=str(folder),
        torch_profiler_with_stack=False,
        torch_profiler_use_gzip=False,
        torch_profiler_dump_cuda_time_total=False,
    )


# vLLM's words for the manifest's methods.
_METHODS = {"ngram": "ngram", "draft": "draft_model", "eagle": "eagle", "mtp": "mtp"}


def _speculation(spec: EngineSpec) -> dict[str, Any]:
    """Prefill proposes nothing, but computes for decode the KV that a draft, a head or MTP layers have of a
    prompt: a schedule of no tokens for any batch lets vLLM run only that part. A schedule everywhere also
    keeps vLLM from padding a first step with proposals that nobody made, which it counts as rejected."""
    speculation = spec.speculation
    prefills = spec.role is WorkerRole.PREFILL
    if speculation is None or (prefills and speculation.method == "ngram"):
        return {}
    proposed = 0 if prefills else speculation.tokens
    config: dict[str, Any] = {
        "method": proposing_method(spec),
        "num_speculative_tokens": speculation.tokens,
        "num_speculative_tokens_per_batch_size": _schedule(spec, proposed),
    }
    if speculation.method == "ngram":
        config |= {
            "prompt_lookup_min": speculation.lookup_min,
            "prompt_lookup_max": speculation.lookup_max,
        }
    if spec.draft_dir is not None:
        config["model"] = str(spec.draft_dir)
    return {"speculative_config": config, "per_request_spec_decode_metrics": "summary"}


def _schedule(spec: EngineSpec, proposed: int) -> list[list[int]]:
    """Returns vLLM's table of tokens by batch size. Our scheduler overrules it (set_scheduler), but on a GPU
    there are CUDA graphs only for the numbers in it: for proposals, and for none."""
    most = spec.engine.max_decode_concurrency
    is_switched = spec.speculation is not None and spec.speculation.adaptive
    if current_platform.is_cpu() or not is_switched or most == 1:
        return [[1, most, proposed]]
    return [[1, most - 1, proposed], [most, most, 0]]


def proposing_method(spec: EngineSpec) -> str:
    """Returns vLLM's name of the method. Of heads there are two kinds, which their architecture tells."""
    assert spec.speculation is not None
    assert spec.speculation.method is not None, "speculation_of sets it"
    if spec.speculation.method == "eagle" and spec.draft_dir is not None:
        names = read_config(spec.draft_dir).get("architectures") or ()
        if any("eagle3" in name.lower() for name in names):
            return "eagle3"
    return _METHODS[spec.speculation.method]


def set_scheduler(config: VllmConfig, speculation: Speculation | None) -> None:
    """Lets the engine propose tokens only while that pays, if it is to. One that never proposes any keeps
    vLLM's own scheduler."""
    found = config.speculative_config
    schedule = found.num_speculative_tokens_per_batch_size if found else ()
    if speculation is not None and speculation.adaptive and any(tokens for _, _, tokens in schedule):
        is_async = config.scheduler_config.async_scheduling
        name = "AsyncSpeculatingScheduler" if is_async else "SpeculatingScheduler"
        config.scheduler_config.scheduler_cls = f"{SCHEDULER_MODULE}.{name}"


def _worker_class(spec: EngineSpec) -> str | None:
    """None: vLLM's own."""
    if not current_platform.is_cpu():
        return None
    return CPU_LORA_WORKER if spec.lora.slots else CPU_WORKER


def _lora(lora: LoraShape) -> dict[str, Any]:
    """vLLM holds no more adapters than there are slots: it never moves one into a slot in a step."""
    if not lora.slots:
        return {}
    return {
        "enable_lora": True,
        "max_loras": lora.slots,
        "max_cpu_loras": lora.slots,
        "max_lora_rank": lora.max_rank,
        "lora_target_modules": list(lora.target_modules),
    }


@contextmanager
def executor_class(config: VllmConfig) -> Iterator[type[Executor]]:
    """Yields what runs the ranks of the model. The processes of the engine must be started within.

    A single rank runs in EngineCore's process. That is vLLM's own choice on GPUs. On CPUs vLLM starts a
    second process for the rank, because OpenMP reads the cores of its threads when a process begins. Here
    EngineCore's process begins with the variables that the second one would get, so that an engine starts
    sooner, needs less memory, and wakes no other process in a step.
    """
    if not (current_platform.is_cpu() and config.parallel_config.world_size == 1):
        yield Executor.get_class(config)
        return
    config.parallel_config.distributed_executor_backend = "uni"
    with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
        yield UniProcExecutor


def _block_size(spec: EngineSpec) -> int | None:
    """Tokens in a block; None leaves it to vLLM."""
    assert spec.model_dir is not None, "vLLM serves a prepared model"
    return block_size_tokens(spec.kv_cache, spec.engine, read_config(spec.model_dir))


def _kv_transfer(spec: EngineSpec, card_path: str) -> KVTransferConfig:
    """Hand-over alone, or with the store beside it: a prompt comes from the first that has it."""
    common: dict[str, Any] = {
        "kv_role": _KV_ROLE[spec.role],
        "kv_load_failure_policy": spec.transfer.on_failure,
    }
    engine_id, handover = f"{spec.worker_id}.{spec.epoch:x}", _handover(spec, card_path)
    if not spec.kv_store:
        return KVTransferConfig(engine_id=engine_id, **handover, **common)
    both = [handover | common, _store(spec) | common | {"kv_role": "kv_both"}]
    return KVTransferConfig(
        kv_connector="MultiConnector",
        kv_connector_module_path=BOTH_MODULE,
        engine_id=engine_id,
        kv_connector_extra_config={"connectors": both},
        **common | {"kv_role": "kv_both"},
    )


def _engine_order(spec: EngineSpec) -> list[str]:
    return list(spec.transfer.engine_order if current_platform.is_cpu() else spec.transfer.gpu_order)


def _handover(spec: EngineSpec, card_path: str) -> dict[str, Any]:
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": CONNECTOR_MODULE,
        "kv_connector_extra_config": ConnectorSettings(
            worker_id=spec.worker_id,
            epoch=spec.epoch,
            host=spec.handover_host,
            model=spec.kv_identity,
            options=options_digest(spec.engine),
            engine_order=tuple(_engine_order(spec)),
            lease_seconds=spec.transfer.lease_seconds,
            card_path=card_path,
            policy=transfer_policy(spec),
            layerwise=spec.transfer.mode != "pull" and spec.role is WorkerRole.PREFILL,
        ).to_extra_config(),
    }


def _store(spec: EngineSpec) -> dict[str, Any]:
    """Decode keeps what it generates as well: the next turn of a conversation begins with it."""
    return {
        "kv_connector": "StoreConnector",
        "kv_connector_module_path": STORE_MODULE,
        "kv_connector_extra_config": {
            "spec_name": "StoreSpec",
            "spec_module_path": STORE_MODULE,
            "kvmanagers": list(spec.kv_store),
            "quantize": spec.kv_store_quantize,
            "worker_id": spec.worker_id,
            "epoch": spec.epoch,
            "engine_order": _engine_order(spec),
            "host": spec.handover_host,
            "policy": asdict(transfer_policy(spec)),
            "offload_prompt_only": spec.role is WorkerRole.PREFILL,
        },
    }
