"""One vLLM engine on core 1, driven directly: for `bench store`."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmserve.transfer.engine.choice import TransferPolicy

MAX_MODEL_LEN = 2048
TENANT = "bench"
_CORE = "1"
_SETTLE_SECONDS = 0.3  # for stores to end: they are copied after the step that computed them


@dataclass(frozen=True, slots=True)
class Answer:
    """cached_tokens: of the prompt, not computed."""

    first_token_seconds: float
    token_ids: list[int]
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Asker:
    """A started AsyncLLM."""

    llm: Any
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def ask(self, prompt: Sequence[int], max_tokens: int, tenant: str = TENANT) -> Answer:
        """tenant "": the store has no part in it."""
        from vllm import SamplingParams, TokensPrompt

        extra = {"kv_transfer_params": {"tenant": tenant}}
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, extra_args=extra)
        name, started, first, last = f"ask-{next(self.numbers)}", time.perf_counter(), 0.0, None
        async for output in self.llm.generate(TokensPrompt(prompt_token_ids=list(prompt)), params, name):
            first, last = first or time.perf_counter() - started, output
        assert last is not None
        return Answer(first, list(last.outputs[0].token_ids), last.num_cached_tokens or 0)

    async def forget(self) -> None:
        """Empties the device cache, once what it holds is stored."""
        await asyncio.sleep(_SETTLE_SECONDS)
        assert await self.llm.reset_prefix_cache(), "blocks are still in use"


@asynccontextmanager
async def engine(
    model: Path, connector: Mapping[str, Any], gpu_blocks: int | None = None
) -> AsyncIterator[Asker]:
    """connector: for vLLM's KVTransferConfig. gpu_blocks: how many the device cache has."""
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND=_CORE, VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1")
    os.environ.update(VLLM_WORKER_MULTIPROC_METHOD="spawn", VLLM_NO_USAGE_STATS="1")
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    transfer = KVTransferConfig(kv_role="kv_both", **connector)
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(model),
            max_model_len=MAX_MODEL_LEN,
            enforce_eager=True,
            enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256_cbor",
            num_gpu_blocks_override=gpu_blocks,
            kv_transfer_config=transfer,
        )
    )
    try:
        yield Asker(llm)
    finally:
        llm.shutdown()


def store_connector(kvmanager: str, quantize: str = "none") -> dict[str, Any]:
    """Ours. kvmanager: host:port. quantize: as its DRAM has it."""
    return {
        "kv_connector": "StoreConnector",
        "kv_connector_module_path": "llmserve.engines.store.spec",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "spec_name": "StoreSpec",
            "spec_module_path": "llmserve.engines.store.spec",
            "kvmanagers": [kvmanager],
            "quantize": quantize,
            "worker_id": "bench",
            "epoch": time.time_ns(),
            "engine_order": [],
            "host": "127.0.0.1",
            "policy": asdict(TransferPolicy()),
            "offload_prompt_only": False,
        },
    }


def vllm_connector(spec: str, **settings: Any) -> dict[str, Any]:
    """vLLM's own. spec: of `store_vllm`."""
    return {
        "kv_connector": "OffloadingConnector",
        "kv_connector_extra_config": {
            "spec_name": spec,
            "spec_module_path": "bench.store.vllm_offloading",
            **settings,
        },
    }
