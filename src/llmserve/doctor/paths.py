"""Which path KV takes between engines on the GPUs of this machine, as far as that can be known without moving
any. `python -m bench gpu` measures it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.core.errors import LLMServeError
from llmserve.doctor import Finding, note, ok, warning
from llmserve.doctor.host import size
from llmserve.doctor.machine import LINKS, PEERS, Tool, gpu_matrix
from llmserve.transfer.devices.staging import PINNED_BYTES
from llmserve.transfer.ucx import staged

_SHOWN_PAIRS = 8


@dataclass(frozen=True, slots=True)
class GpuTopology:
    """Between each two GPUs: the link as `nvidia-smi topo -m` names it, and the state of peer access. Empty
    when that cannot be seen."""

    links: Sequence[Sequence[str]] = ()
    peers: Sequence[Sequence[str]] = ()

    @classmethod
    def seen_by(cls, tool: Tool) -> "GpuTopology":
        try:
            return cls(gpu_matrix(tool(LINKS)), gpu_matrix(tool(PEERS)))
        except LLMServeError:
            return cls()

    def path(self, one: int, other: int) -> str:
        """Returns the path of a transport that uses CUDA IPC where it can."""
        if one == other:
            return "within one GPU"
        link, state = _cell(self.links, one, other), _cell(self.peers, one, other)
        if not state:
            return "unknown"
        if state != "OK":
            return f"through host memory (peer access: {state})"
        return f"CUDA IPC over {'NVLink' if link.startswith('NV') else 'PCIe'} ({link or 'link unknown'})"


def _cell(matrix: Sequence[Sequence[str]], row: int, column: int) -> str:
    return matrix[row][column] if row < len(matrix) and column < len(matrix[row]) else ""


@dataclass(frozen=True, slots=True)
class MayPin:
    """available_bytes: what may still be allocated here. locked_bytes: what each process may lock; infinity:
    no limit."""

    available_bytes: float
    locked_bytes: float


def gpu_paths(workers: Sequence[ProcessSpec], order: Sequence[str], topology: GpuTopology) -> Finding:
    """workers: those on GPUs. order: `transfer.engine_order`."""
    pairs = list(_pairs(workers))
    figures = {"pairs": len(pairs)}
    if not pairs:
        return ok("KV paths", "no KV moves between GPUs", **figures)
    if "nixl" not in order:
        value = "between all engines through pinned host memory and a socket"
        return note("KV paths", value, "transfer.engine_order has no nixl.", **figures)
    paths = [(name, dict.fromkeys(topology.path(*gpus) for gpus in ranks)) for name, ranks in pairs]
    value = "; ".join(f"{name} {', '.join(found)}" for name, found in paths[:_SHOWN_PAIRS])
    if len(paths) > _SHOWN_PAIRS:
        value += f"; and {len(paths) - _SHOWN_PAIRS} more"
    advice = "What is not CUDA IPC is slower, and goes over tcp if need be."
    if all(path.startswith(("CUDA IPC", "within")) for _, found in paths for path in found):
        advice = "By nixl, if it finds CUDA: `python -m bench gpu` measures it."
    return note("KV paths", value, advice, **figures)


def _pairs(workers: Sequence[ProcessSpec]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yields each pair of prefill and decode, with the GPUs of each two ranks between which KV moves."""
    for prefill in workers:
        for decode in workers:
            if prefill.role is ProcessRole.PREFILL and decode.role is ProcessRole.DECODE:
                alike = len(prefill.gpus) == len(decode.gpus)
                all_ranks = product(prefill.gpus, decode.gpus)
                ranks = zip(prefill.gpus, decode.gpus, strict=True) if alike else all_ranks
                yield f"{prefill.name} > {decode.name}", list(ranks)


def pinned_memory(
    workers: Sequence[ProcessSpec], order: Sequence[str], may_pin: MayPin, store_bytes: int = 0
) -> Finding:
    """Adds up the pinned slots through which tcp and ucx stage, and the store. workers: those on GPUs; each
    rank is a process. order: `transfer.engine_order`. store_bytes: the DRAM of the KV store, which all
    engines pin."""
    each = PINNED_BYTES + (staged.PINNED_BYTES if "ucx" in order else 0)
    ranks = sum(len(worker.gpus) for worker in workers)
    total = ranks * each + store_bytes
    store = f", and the {size(store_bytes)} of the KV store's DRAM" if store_bytes else ""
    value = f"up to {size(total)}: {size(each)} for each of {ranks} ranks{store}"
    figures = {"pinned_bytes": total, "available_bytes": may_pin.available_bytes}
    if total > may_pin.available_bytes:
        advice = (
            f"Only {size(may_pin.available_bytes)} are available, and what is pinned is never swapped out."
        )
        return warning("pinned memory", value, advice, **figures)
    if each + store_bytes > may_pin.locked_bytes:
        advice = (
            f"A process may lock {size(may_pin.locked_bytes)}. CUDA's driver does not count what it pins, "
            "but network cards that send it do: ulimit -l unlimited, or docker run --ulimit memlock=-1"
        )
        return note("pinned memory", value, advice, **figures)
    return ok("pinned memory", value, **figures)
