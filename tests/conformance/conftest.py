"""The real engine for the engine suite: `pytest tests/conformance -m real_vllm` (make test does).
And the ends of a transfer, for the transport suites.
"""

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from llmserve.config.load import load_manifest
from llmserve.config.schema import EngineConfig, KvCacheConfig, TransferConfig
from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.ids import WorkerId
from llmserve.core.request import WorkerRole
from llmserve.engines.base import Engine
from llmserve.engines.spec import EngineSpec
from llmserve.models import resolve
from tests.conformance.transport_ends import far, kind, mortal, near, own_near, peer, shared_near
from tests.support.faulty_s3 import s3_proxy
from tests.support.seaweed import s3_server
from tests.support.tiny_llama import make_tiny_llama
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
TINY_VOCAB, TINY_MODEL_LEN, TINY_LAYERS = 2048, 2048, 8
TINY_MEMORY_GB = 0.027  # 55 blocks of 128 tokens, so that tests fill them


class VllmKit:
    """Each engine gets the next core, as the runner would give it one. In float32, where what shares a batch
    or a chunk with a prompt does not change what is said of it; in bfloat16 it may."""

    settle_seconds = 10.0
    prompt_vocab = TINY_VOCAB
    other_block_size = 96  # that of `make` is vLLM's own, 128 on CPU

    def __init__(self, model_dir: Path, memory_gb: float = 1.0) -> None:
        self.model_dir = model_dir
        self._memory_gb = memory_gb
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

    def seeded(self, max_tokens: int) -> bytes:
        from vllm.sampling_params import SamplingParams

        params = SamplingParams(
            temperature=1.0, seed=11, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )
        return msgspec.msgpack.encode(params)

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
        cache = KvCacheConfig(memory_gb=self._memory_gb, block_size_tokens=block_size_tokens)
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


@pytest.fixture(scope="session")
def tiny_vllm_kit(tmp_path_factory: pytest.TempPathFactory) -> VllmKit:
    """What the model says depends on each block of a prompt, and it is quick."""
    model = make_tiny_llama(
        tmp_path_factory.mktemp("tiny") / "model",
        seed=3,
        layers=TINY_LAYERS,
        vocab=TINY_VOCAB,
        max_model_len=TINY_MODEL_LEN,
    )
    return VllmKit(model, TINY_MEMORY_GB)
