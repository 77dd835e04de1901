"""Which path KV takes between engines on the GPUs of this machine, as far as that can be known without moving
any. `python -m bench gpu` measures it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.core.errors import LLMServeError
from llmserve.doctor import Finding, note, ok
from llmserve.doctor.host import size
from llmserve.doctor.machine import PEERS, Tool, gpu_matrix
from llmserve.transfer.devices.staging import SLOT_BYTES

_LINKS = ("nvidia-smi", "topo", "-m")
_SHOWN_PAIRS = 8
_PINNED_BYTES = 8 * SLOT_BYTES  # of each rank: four slots for each direction


@dataclass(frozen=True, slots=True)
class GpuTopology:
    """Between each two GPUs: the link as `nvidia-smi topo -m` names it, and the state of peer access. Empty
    when that cannot be seen."""

    links: Sequence[Sequence[str]] = ()
    peers: Sequence[Sequence[str]] = ()

    @classmethod
    def seen_by(cls, tool: Tool) -> "GpuTopology":
        try:
            return cls(gpu_matrix(tool(_LINKS)), gpu_matrix(tool(PEERS)))
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


def gpu_paths(
    workers: Sequence[ProcessSpec], order: Sequence[str], topology: GpuTopology, store_bytes: int = 0
) -> Finding:
    """workers: those on GPUs. order: `transfer.engine_order`. store_bytes: the DRAM of the KV store, which
    all engines pin."""
    pairs = list(_pairs(workers))
    pinned = sum(len(worker.gpus) for worker in workers) * _PINNED_BYTES
    figures = {"pinned_bytes": pinned + store_bytes, "pairs": len(pairs)}
    store = f", and engines the {size(store_bytes)} of the KV store's DRAM" if store_bytes else ""
    staged = (
        f"Staging pins {size(pinned)} of host memory{store}: it is never swapped and counts in its limit."
    )
    if not pairs:
        value = "no KV moves between GPUs"
        return note("KV paths", value, staged, **figures) if store else ok("KV paths", value, **figures)
    if "nixl" not in order:
        value = "between all engines through pinned host memory and a socket"
        return note("KV paths", value, f"transfer.engine_order has no nixl. {staged}", **figures)
    paths = [(name, topology.path(one, other)) for name, one, other in pairs]
    value = "; ".join(f"{name} {path}" for name, path in paths[:_SHOWN_PAIRS])
    if len(paths) > _SHOWN_PAIRS:
        value += f"; and {len(paths) - _SHOWN_PAIRS} more"
    advice = f"What is not CUDA IPC is slower, and goes over tcp if need be. {staged}"
    if all(path.startswith(("CUDA IPC", "within")) for _, path in paths):
        advice = f"By nixl, if it finds CUDA: `python -m bench gpu` measures it. {staged}"
    return note("KV paths", value, advice, **figures)


def _pairs(workers: Sequence[ProcessSpec]) -> Iterator[tuple[str, int, int]]:
    """Yields each pair of prefill and decode, with the GPUs of their first ranks."""
    for prefill in workers:
        for decode in workers:
            if prefill.role is ProcessRole.PREFILL and decode.role is ProcessRole.DECODE:
                yield f"{prefill.name} > {decode.name}", prefill.gpus[0], decode.gpus[0]
