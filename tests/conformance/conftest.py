"""The real engine for the engine suite: `pytest tests/conformance -m real_vllm` (make test does).
And the ends of a transfer, for the transport suites.
"""

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmserve.config.load import load_manifest
from llmserve.config.schema import EngineConfig, KvCacheConfig, TransferConfig
from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.engines.base import Engine
from llmserve.engines.spec import EngineSpec
from llmserve.models import resolve
from tests.conformance.transport_ends import far, kind, mortal, near, own_near, peer, shared_near
from tests.support.faulty_s3 import s3_proxy
from tests.support.seaweed import s3_server
from tests.support.valkey import valkey

__all__ = [
    "far",
    "kind",
    "mortal",
    "near",
    "own_near",
    "peer",
    "s3_proxy",
    "s3_server",
    "shared_near",
    "valkey",
]

MANIFEST = Path(__file__).parents[2] / "llmserve.yaml"


class VllmKit:
    """Each engine gets the next core, as the runner would give it one. In float32, where what shares a batch
    or a chunk with a prompt does not change what is said of it; in bfloat16 it may."""

    settle_seconds = 10.0
    prompt_vocab = 20_000
    other_block_size = 96  # that of `make` is vLLM's own, 128 on CPU

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        self._cores = itertools.cycle(range(os.cpu_count() or 1))

    def make(
        self,
        role: WorkerRole,
        name: str,
        block_size_tokens: int | None = None,
        long_prompt_tokens: int | None = None,
        lora: LoraShape = NO_ADAPTERS,
    ) -> Engine:
        return self._engine(role, name, self.model_dir, block_size_tokens, long_prompt_tokens, lora)

    def make_pooling(self, task: str) -> Engine:
        return self._engine(WorkerRole.AGGREGATED, "pooling", self.model_dir, task=task)

    def make_broken(self) -> Engine:
        return self._engine(WorkerRole.DECODE, "broken", self.model_dir / "no-such-directory")

    def _engine(
        self,
        role: WorkerRole,
        name: str,
        model_dir: Path,
        block_size_tokens: int | None = None,
        long_prompt_tokens: int | None = None,
        lora: LoraShape = NO_ADAPTERS,
        task: str = "generate",
    ) -> Engine:
        from llmserve.engines.vllm.engine import VllmEngine

        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = str(next(self._cores))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
        plain = self.spec(role, name)
        changes = {"prefill_long_prompt_tokens": long_prompt_tokens, "task": task}
        engine = plain.engine.model_copy(update=changes)
        cache = KvCacheConfig(block_size_tokens=block_size_tokens)
        return VllmEngine(replace(plain, model_dir=model_dir, engine=engine, kv_cache=cache, lora=lora))

    def spec(self, role: WorkerRole, name: str) -> EngineSpec:
        return EngineSpec(
            worker_id=WorkerId(name),
            epoch=time.time_ns(),
            role=role,
            model_dir=self.model_dir,
            model_name="SmolLM2-135M-Instruct",
            model_identity="rev",
            engine=EngineConfig(max_model_len=2048, dtype="float32"),
            kv_cache=KvCacheConfig(),
            transfer=TransferConfig(),
        )


@pytest.fixture(scope="session")
def vllm_kit() -> VllmKit:
    return VllmKit(Path(resolve(load_manifest(MANIFEST).model).path))
