"""Which path KV takes between GPUs, from what nvidia-smi says."""

from collections.abc import Sequence
from math import inf

import pytest

from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.core.errors import LLMServeError
from llmserve.doctor import Status
from llmserve.doctor.paths import GpuTopology, MayPin, gpu_paths, pinned_memory

LINKS = """\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-31\t0
GPU1\tNV18\t X \tPHB\tPIX\t0-31\t0
GPU2\tSYS\tPHB\t X \tSYS\t32-63\t1

Legend:

  X    = Self
"""
PEERS = """ \tGPU0\tGPU1\tGPU2
 GPU0\tX\tOK\tCNS
 GPU1\tOK\tX\tOK
 GPU2\tCNS\tOK\tX
"""


def tool(command: Sequence[str]) -> str:
    return LINKS if command[-1] == "-m" else PEERS


def failing(command: Sequence[str]) -> str:
    raise LLMServeError("nvidia-smi is not installed")


def worker(role: ProcessRole, *gpus: int) -> ProcessSpec:
    return ProcessSpec(role=role, name=f"{role}-{gpus[0]}", module="llmserve.workers", gpus=gpus)


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        (0, 0, "within one GPU"),
        (0, 1, "CUDA IPC over NVLink (NV18)"),
        (1, 2, "CUDA IPC over PCIe (PHB)"),
        (0, 2, "through host memory (peer access: CNS)"),
        (0, 7, "unknown"),
    ],
)
def test_the_path_between_two_gpus(one: int, other: int, path: str) -> None:
    assert GpuTopology.seen_by(tool).path(one, other) == path


def test_without_nvidia_smi_the_path_is_unknown() -> None:
    assert GpuTopology.seen_by(failing).path(0, 1) == "unknown"


def test_each_pair_of_prefill_and_decode_has_a_path() -> None:
    workers = [
        worker(ProcessRole.PREFILL, 0),
        worker(ProcessRole.DECODE, 1),
        worker(ProcessRole.DECODE, 2),
    ]
    found = gpu_paths(workers, ("nixl",), GpuTopology.seen_by(tool))
    assert found.status is Status.NOTE
    assert found.value == (
        "prefill-0 > decode-1 CUDA IPC over NVLink (NV18); "
        "prefill-0 > decode-2 through host memory (peer access: CNS)"
    )
    assert "slower" in found.advice
    assert found.figures == {"pairs": 2}


def test_pairs_with_peer_access_are_to_be_measured() -> None:
    workers = [worker(ProcessRole.PREFILL, 0, 2), worker(ProcessRole.DECODE, 1)]
    found = gpu_paths(workers, ("nixl",), GpuTopology.seen_by(tool))
    assert "bench gpu" in found.advice
    assert found.value == "prefill-0 > decode-1 CUDA IPC over NVLink (NV18), CUDA IPC over PCIe (PHB)"


def test_ranks_of_engines_alike_meet_their_like() -> None:
    workers = [worker(ProcessRole.PREFILL, 0, 1), worker(ProcessRole.DECODE, 1, 2)]
    found = gpu_paths(workers, ("nixl",), GpuTopology.seen_by(tool))
    assert found.value == "prefill-0 > decode-1 CUDA IPC over NVLink (NV18), CUDA IPC over PCIe (PHB)"


@pytest.mark.parametrize(
    ("order", "available", "locked", "status", "said"),
    [
        (("nixl",), 96 << 20, inf, Status.OK, ""),
        (("nixl",), (96 << 20) - 1, inf, Status.WARNING, "Only 96 MiB are available"),
        (("nixl", "ucx"), 288 << 20, 96 << 20, Status.OK, ""),
        (("nixl", "ucx"), 288 << 20, (96 << 20) - 1, Status.NOTE, "A process may lock 96 MiB"),
    ],
)
def test_pinned_memory_is_counted_against_memory_and_the_limit_of_a_process(
    order: Sequence[str], available: float, locked: float, status: Status, said: str
) -> None:
    workers = [worker(ProcessRole.PREFILL, 0, 2), worker(ProcessRole.DECODE, 1)]
    found = pinned_memory(workers, order, MayPin(available, locked))
    each = 96 << 20 if "ucx" in order else 32 << 20
    assert (found.status, found.figures["pinned_bytes"]) == (status, 3 * each)
    assert found.advice.startswith(said)


def test_without_nixl_everything_is_staged() -> None:
    workers = [worker(ProcessRole.PREFILL, 0), worker(ProcessRole.DECODE, 1)]
    found = gpu_paths(workers, ("ucx",), GpuTopology.seen_by(tool))
    assert found.value == "between all engines through pinned host memory and a socket"


def test_engines_without_disaggregation_move_no_kv() -> None:
    workers = [worker(ProcessRole.DECODE, 0), worker(ProcessRole.DECODE, 1)]
    assert gpu_paths(workers, ("nixl",), GpuTopology()).status is Status.OK


def test_the_stores_memory_is_pinned_as_well() -> None:
    workers = [worker(ProcessRole.DECODE, 0), worker(ProcessRole.DECODE, 1)]
    found = pinned_memory(workers, ("nixl",), MayPin(inf, (8 << 30) + (32 << 20)), store_bytes=8 << 30)
    assert found.status is Status.OK
    assert found.value == "up to 8.1 GiB: 32 MiB for each of 2 ranks, and the 8.0 GiB of the KV store's DRAM"
    assert found.figures["pinned_bytes"] == (8 << 30) + (64 << 20)
    above = pinned_memory(workers, ("nixl",), MayPin(inf, 8 << 30), store_bytes=8 << 30)
    assert above.status is Status.NOTE


def test_many_pairs_are_not_all_shown() -> None:
    workers = [worker(ProcessRole.PREFILL, 0), *(worker(ProcessRole.DECODE, n) for n in range(10))]
    assert gpu_paths(workers, ("nixl",), GpuTopology()).value.endswith("; and 2 more")
