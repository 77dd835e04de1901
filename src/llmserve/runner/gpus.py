"""Between the GPUs of a cluster: the paths of KV, and the host memory that is pinned for them, as far as both
are known before anything starts. `python -m bench gpu` measures the paths.
"""

import math
import re
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

from llmserve.config.conflict import Conflict
from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError
from llmserve.k8s.render.configuration import engine_order
from llmserve.runner.host import (
    Allowance,
    Host,
    allowance,
    effective_capabilities,
    may_lock,
    rdma_ports,
    size,
)
from llmserve.transfer.pinned import PinnedMemory

Tool = Callable[[Sequence[str]], str]
"""Runs a program and returns what it printed. Errors: LLMServeError with the reason."""

PEERS = ("nvidia-smi", "topo", "-p2p", "r")
LINKS = ("nvidia-smi", "topo", "-m")
_TOOL_SECONDS = 10.0
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # nvidia-smi underlines its headings


def run_tool(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    except FileNotFoundError:
        raise LLMServeError(f"{command[0]} is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LLMServeError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).partition("\n")[0]
        raise LLMServeError(f"{command[0]} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


def gpu_matrix(text: str) -> list[list[str]]:
    """Returns the rows `GPU0 X OK ...` of a table of nvidia-smi for several GPUs, whose heading begins with
    their names. Other devices and affinities may follow in each row."""
    rows = [line.split() for line in _ESCAPES.sub("", text).splitlines()]
    return [row[1:] for row in rows if len(row) > 1 and row[0].startswith("GPU") and row[1][:3] != "GPU"]


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
            return "CUDA IPC within one GPU"
        link, state = _cell(self.links, one, other), _cell(self.peers, one, other)
        if not state:
            return "unknown (nvidia-smi does not tell)"
        if state != "OK":
            return f"through host memory (peer access: {state})"
        return f"CUDA IPC over {'NVLink' if link.startswith('NV') else 'PCIe'} ({link or 'link unknown'})"


def _cell(matrix: Sequence[Sequence[str]], row: int, column: int) -> str:
    return matrix[row][column] if row < len(matrix) and column < len(matrix[row]) else ""


_STAGED = "pinned host memory, then a socket"
_ONE_SIDED = "nixl"


@dataclass(frozen=True, slots=True)
class KvPath:
    """between: who gives and who takes, such as `prefill-0 > decode-0`. ways: transport and path, in the
    order of preference; a pair may take a later one that is much faster."""

    between: str
    ways: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        grouped = groupby(self.ways, lambda way: way[1])
        ways = (f"{', '.join(name for name, _ in group)}: {path}" for path, group in grouped)
        return f"{self.between}: {'; '.join(ways)}"


def kv_paths(manifest: Manifest, workers: Sequence[ProcessSpec], topology: GpuTopology) -> list[KvPath]:
    """Returns the path of each pair of prefill and decode. workers: processes of a plan, all on one host and
    in one PID namespace, which CUDA IPC needs."""
    order = manifest.transfer.gpu_order
    return [
        KvPath(name, _ways(order, ", ".join(dict.fromkeys(topology.path(*gpus) for gpus in ranks))))
        for name, ranks in _pairs([worker for worker in workers if worker.gpus])
    ]


def kv_path_of_pods(manifest: Manifest) -> KvPath:
    """A pod sees neither the GPUs nor the processes of another one, so that nothing goes by CUDA IPC."""
    has_rdma = manifest.deployment.k8s.rdma_resource is not None
    path = "RDMA between the GPUs, else TCP" if has_rdma else "TCP, since pods share neither GPUs nor PIDs"
    return KvPath("prefill > decode", _ways(engine_order(manifest), path))


def _ways(order: Sequence[str], one_sided: str) -> tuple[tuple[str, str], ...]:
    """one_sided: the path of nixl. shm reaches no memory of a GPU, and tcp comes last."""
    paths = {_ONE_SIDED: one_sided, "nccl": "from GPU to GPU, as NCCL chooses"}
    return tuple((name, paths.get(name, _STAGED)) for name in dict.fromkeys((*order, "tcp")))


def _pairs(workers: Sequence[ProcessSpec]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yields each pair of prefill and decode of one model, with the GPUs of each two ranks that move KV."""
    for prefill in workers:
        for decode in workers:
            roles = (prefill.role, decode.role)
            if prefill.model == decode.model and roles == (ProcessRole.PREFILL, ProcessRole.DECODE):
                alike = len(prefill.gpus) == len(decode.gpus)
                all_ranks = product(prefill.gpus, decode.gpus)
                ranks = zip(prefill.gpus, decode.gpus, strict=True) if alike else all_ranks
                yield f"{prefill.name} > {decode.name}", list(ranks)


def pinned_text(pinned: PinnedMemory) -> str:
    """Describes what is pinned on one host."""
    store = f", {size(pinned.store_bytes)} for the KV store's DRAM" if pinned.store_bytes else ""
    slots = f"{pinned.ranks} x {size(pinned.rank_bytes)} for the slots of each rank"
    return f"up to {size(pinned.host_bytes)}: {slots}{store}"


@dataclass(frozen=True, slots=True)
class PinLimits:
    """memory_bytes: that of this host, or of this container. locked_bytes: what the kernel lets a process
    lock; infinity: no limit, or nothing here counts. CUDA's driver does not count what it pins, while network
    cards with RDMA do."""

    memory_bytes: float
    locked_bytes: float

    @classmethod
    def of(cls, host: Host) -> "PinLimits":
        locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        exempt = locked == resource.RLIM_INFINITY or may_lock(effective_capabilities(host))
        counts = any(port.is_active for port in rdma_ports(host))
        return cls(total_bytes(host, allowance(host)), locked if counts and not exempt else math.inf)


def total_bytes(host: Host, allowed: Allowance) -> float:
    """Returns the memory of the host or the container; infinity when that cannot be seen."""
    return min(host.memory().get("MemTotal", math.inf), allowed.memory_bytes)


def pinned_refusals(manifest: Manifest, pinned: PinnedMemory, limits: PinLimits) -> Iterator[Conflict]:
    """Finds more pinned memory than there can be. The keys are those that would make it less."""
    keys = _keys_of(manifest)
    if pinned.host_bytes > limits.memory_bytes:
        message = (
            f"the engines pin {pinned_text(pinned)}; this host has {size(limits.memory_bytes)}, and what is "
            "pinned is never swapped out"
        )
        yield Conflict(keys, message)
    elif _ONE_SIDED in manifest.transfer.gpu_order and pinned.process_bytes > limits.locked_bytes:
        store = f" and the {size(pinned.store_bytes)} of the KV store's DRAM" if pinned.store_bytes else ""
        message = (
            f"a process pins up to {size(pinned.process_bytes)}: {size(pinned.rank_bytes)} of slots{store}; "
            f"network cards with RDMA take at most {size(limits.locked_bytes)} of it here (ulimit -l): "
            "ulimit -l unlimited, or docker run --ulimit memlock=-1"
        )
        yield Conflict(keys, message)


def _keys_of(manifest: Manifest) -> tuple[tuple[str | int, ...], ...]:
    dram = (at for at, one in enumerate(manifest.storageClasses) if one.tier == "dram")
    return (*(("storageClasses", at, "capacity_gb") for at in dram), ("transfer", "engine_order"))
