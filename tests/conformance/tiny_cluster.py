"""Engines of a tiny model on real vLLM, with a store: two of one rank, and one of two."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmserve.config.schema import EngineConfig, KvCacheConfig, StorageClass, TransferConfig
from llmserve.core.clock import SystemClock
from llmserve.core.ids import WorkerId
from llmserve.core.process import descendants
from llmserve.core.request import WorkerRole
from llmserve.engines.base import Engine
from llmserve.engines.spec import EngineSpec
from llmserve.kvstore.role import KVManagerRole
from llmserve.kvstore.store.build import BuiltStore, StoreParts, build_store
from llmserve.runner.process.family import remove_unused_shared_memory, shared_memory
from tests.conformance.engine_pair import Harness, Pair, numbers
from tests.support.tiny_hybrid import MAX_MODEL_LEN

BLOCK, PIECE = 32, 128  # tokens of a block, and of a prompt that are computed at once
SETTLE_SECONDS = 15.0
_FAULTS = "nixl: fail_poll=1/12, corrupt=1/12, seed=5"


@dataclass
class Manager:
    """A KV manager with memory and a disk, in the test's process. Another one may follow it on that disk."""

    disk: Path
    port: int
    built: BuiltStore = field(init=False)
    role: KVManagerRole | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        memory = StorageClass(name="memory", tier="dram", capacity_gb=0.125)
        disk = StorageClass(
            name="disk", tier="nvme", capacity_gb=0.25, location=str(self.disk), write="through"
        )
        parts = StoreParts([memory, disk], 0.0, 0.0, {}, "tiny", "tiny.kvmanager-0", os.environ)
        built = build_store(parts, SystemClock())
        assert built is not None
        self.built = built
        self.role = KVManagerRole(listen=self.address, store=built)
        await self.role.start()

    async def stop(self) -> None:
        role, self.role = self.role, None
        if role is not None:
            await role.aclose()

    def stored_blocks(self) -> int:
        """Those that are on the disk, when nothing is on its way there."""
        (disk,) = self.built.store.lower
        count = len(disk.index)
        return count if count >= len(self.built.store.dram.index) else 0


@dataclass(frozen=True)
class Engines:
    prefill: Harness
    decode: Harness
    wide: Harness

    def pair(self, names: str) -> Pair:
        source, target = names.split(" to ")
        return Pair(getattr(self, source), getattr(self, target))


def _engine(model: Path, manager: Manager, role: WorkerRole, name: str, ranks: int) -> Engine:
    from llmserve.engines.vllm.engine import VllmEngine

    return VllmEngine(
        EngineSpec(
            worker_id=WorkerId(name),
            epoch=next(numbers),
            role=role,
            model_dir=model,
            model_name="tiny",
            model_identity="rev",
            engine=EngineConfig(
                max_model_len=MAX_MODEL_LEN,
                dtype="float32",
                tensor_parallel=ranks,
                max_batched_tokens=PIECE,
                max_decode_concurrency=16,
            ),
            kv_cache=KvCacheConfig(memory_gb=0.06, block_size_tokens=BLOCK),
            transfer=TransferConfig(engine_order=("nixl",), verify="always"),
            kv_store=(manager.address,),
        )
    )


@asynccontextmanager
async def started(model: Path, first: Manager, second: Manager) -> AsyncIterator[Engines]:
    """prefill keeps its blocks in the first KV manager, the others in the second. All transfers meet faults.
    The engines start beside each other, so none is bound to a core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMSERVE_FAULTS", _FAULTS)
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
        made = [
            _engine(model, first, WorkerRole.PREFILL, "prefill", 1),
            _engine(model, second, WorkerRole.DECODE, "decode", 1),
            _engine(model, second, WorkerRole.AGGREGATED, "wide", 2),
        ]
        left: set[str] = set()
        try:
            opened = await asyncio.gather(*(Harness.open(one, SETTLE_SECONDS) for one in made))
            left = shared_memory(descendants(os.getpid()))
            yield Engines(*opened)
            await asyncio.gather(*(harness.close() for harness in opened))
        finally:
            await asyncio.gather(*(engine.aclose() for engine in made))
            remove_unused_shared_memory(left)  # ranks of vLLM leave theirs; no supervisor does it here
