"""Which path KV takes between engines on the GPUs of this machine, and what they pin, as findings."""

from collections.abc import Sequence

from llmserve.doctor import Finding, note, ok, warning
from llmserve.runner.gpus import KvPath, pinned_text
from llmserve.runner.host import size
from llmserve.transfer.pinned import PinnedMemory

_SHOWN_PAIRS = 8


def gpu_paths(paths: Sequence[KvPath]) -> Finding:
    """paths: those of all pairs, which have the same transports."""
    figures = {"pairs": len(paths)}
    if not paths:
        return ok("KV paths", "no KV moves between GPUs", **figures)
    if "nixl" not in dict(paths[0].ways):
        value = "between all engines through pinned host memory and a socket"
        return note("KV paths", value, "transfer.engine_order has no nixl.", **figures)
    by_nixl = [(path.between, dict(path.ways)["nixl"]) for path in paths]
    value = "; ".join(f"{name} {path}" for name, path in by_nixl[:_SHOWN_PAIRS])
    if len(paths) > _SHOWN_PAIRS:
        value += f"; and {len(paths) - _SHOWN_PAIRS} more"
    advice = "What is not CUDA IPC is slower, and goes over tcp if need be."
    if all(part.startswith("CUDA IPC") for _, path in by_nixl for part in path.split(", ")):
        advice = "By nixl, if it finds CUDA: `python -m bench gpu` measures it."
    return note("KV paths", value, advice, **figures)


def pinned_memory(pinned: PinnedMemory, available_bytes: float) -> Finding:
    """available_bytes: what may still be allocated here."""
    figures = {"pinned_bytes": pinned.host_bytes, "available_bytes": available_bytes}
    if pinned.host_bytes > available_bytes:
        advice = f"Only {size(available_bytes)} are available, and what is pinned is never swapped out."
        return warning("pinned memory", pinned_text(pinned), advice, **figures)
    return ok("pinned memory", pinned_text(pinned), **figures)
