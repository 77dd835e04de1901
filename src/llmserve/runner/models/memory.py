"""The memory that a model's engines take on this machine, as far as it is known before they start."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmserve.config.plan_types import ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.runner.gpus import Tool, run_tool
from llmserve.runner.host import GIB, MIB, Host, allowance, available_bytes, size
from llmserve.transfer.pinned import PinnedMemory

# An engine's processes on the CPU, without KV and weights (measured: 2.1 to 2.4 GiB).
ENGINE_BYTES = 2.2 * GIB
_FREE = ("nvidia-smi", "--query-gpu=index,memory.free", "--format=csv,noheader,nounits")


def engine_bytes(manifest: Manifest, weight_bytes: int) -> float:
    """Returns what one engine on the CPU takes. manifest: of one model."""
    return ENGINE_BYTES + weight_bytes + _kv_bytes(manifest) * manifest.engine.tensor_parallel


def _kv_bytes(manifest: Manifest) -> float:
    """Returns the KV of one rank."""
    return manifest.kv_cache.memory_gb * GIB


@dataclass(frozen=True, slots=True)
class NeededMemory:
    """host_bytes: of this machine. gpu_bytes: of each of its GPUs. text: how the sum is made."""

    host_bytes: float = 0.0
    gpu_bytes: Counter[int] = field(default_factory=Counter)
    text: str = ""

    @classmethod
    def of(cls, manifest: Manifest, weight_bytes: int, workers: Sequence[ProcessSpec]) -> "NeededMemory":
        """manifest: of one model. workers: its engines, as they are planned. A simulated engine takes
        little."""
        if manifest.engine.kind != "vllm":
            return cls()
        on_gpu = [worker for worker in workers if worker.gpus]
        if not on_gpu:
            each = engine_bytes(manifest, weight_bytes)
            parts = f"{size(ENGINE_BYTES)} of processes, {size(weight_bytes)} of weights"
            kv = _kv_bytes(manifest) * manifest.engine.tensor_parallel
            text = f"{len(workers)} x ({parts}, {size(kv)} of KV)"
            return cls(each * len(workers), text=text)
        rank = weight_bytes / len(on_gpu[0].gpus) + _kv_bytes(manifest)
        pinned = PinnedMemory.of_host(manifest, [manifest.model.served_name] * len(on_gpu))
        ranks = Counter(gpu for worker in on_gpu for gpu in worker.gpus)
        text = f"{size(rank)} of weights and KV on each GPU, {size(pinned.rank_bytes)} pinned by each rank"
        gpus = Counter({gpu: int(count * rank) for gpu, count in ranks.items()})
        return cls(pinned.ranks * pinned.rank_bytes, gpus, text)


NOTHING = NeededMemory()


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """What may be taken now. gpu_bytes: of each GPU that can be asked."""

    host_bytes: float = math.inf
    gpu_bytes: Counter[int] = field(default_factory=Counter)

    @classmethod
    def here(cls, tool: Tool = run_tool) -> "FreeMemory":
        """Blocks while nvidia-smi answers."""
        host = Host()
        try:
            rows = [line.split(",") for line in tool(_FREE).splitlines()]
            gpus = Counter({int(index): int(free) * MIB for index, free in rows})
        except (LLMServeError, ValueError):
            gpus = Counter()
        return cls(available_bytes(host, allowance(host)), gpus)


def check_room(
    name: str,
    needed: NeededMemory,
    free: FreeMemory,
    *,
    leaving: NeededMemory,
    coming: Iterable[NeededMemory],
) -> None:
    """leaving: what is given back before. coming: what others will have taken, who have not yet. Errors:
    StartFailed with the sum."""
    others = list(coming)
    left = free.host_bytes + leaving.host_bytes - sum(one.host_bytes for one in others)
    if needed.host_bytes > left:
        raise _too_large(name, needed, needed.host_bytes, left, "on this host", leaving)
    for gpu, wanted in needed.gpu_bytes.items():
        if gpu in free.gpu_bytes:
            taken = sum(one.gpu_bytes[gpu] for one in others)
            left = free.gpu_bytes[gpu] + leaving.gpu_bytes[gpu] - taken
            if wanted > left:
                raise _too_large(name, needed, wanted, left, f"on GPU {gpu}", leaving)


def _too_large(
    name: str, needed: NeededMemory, wanted: float, left: float, where: str, leaving: NeededMemory
) -> StartFailed:
    given = " when the other model has left" if leaving.host_bytes or leaving.gpu_bytes else ""
    hint = "lower its kv_cache.memory_gb or replicas, or unload a model or swap it"
    return StartFailed(
        f"model {name} needs about {size(wanted)} {where} ({needed.text}), and {size(max(0.0, left))} "
        f"are available{given}: {hint}"
    )
