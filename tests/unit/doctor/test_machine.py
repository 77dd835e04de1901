"""Each status of each check of processor, memory and GPUs, caused."""

import math
from collections.abc import Sequence

import pytest

from llmserve.core.errors import LLMServeError
from llmserve.doctor import Status, machine
from llmserve.doctor.machine import (
    gpu_links,
    gpu_modules,
    gpu_paths,
    gpu_peers,
    gpus,
    pid_namespace,
    pinned_memory,
)
from llmserve.runner.gpus import KvPath
from llmserve.runner.host import GIB, Allowance
from llmserve.transfer.pinned import PinnedMemory
from tests.unit.conftest import MakeHost

_KIB = 1024


def _meminfo(**gib: float) -> dict[str, str]:
    return {"proc/meminfo": "\n".join(f"{name}: {int(value * GIB / _KIB)} kB" for name, value in gib.items())}


def test_only_linux() -> None:
    assert machine.system("Linux", "6.1", "x86_64").status is Status.OK
    assert machine.system("Darwin", "23", "arm64").status is Status.PROBLEM


@pytest.mark.parametrize(
    ("architecture", "flags", "status"),
    [
        ("x86_64", "avx2 avx512f avx512_bf16", Status.OK),
        ("x86_64", "avx2 avx512f", Status.NOTE),
        ("x86_64", "avx2", Status.NOTE),
        ("x86_64", "sse2", Status.WARNING),
        ("aarch64", "asimd", Status.OK),
    ],
)
def test_what_vllm_can_use_of_the_processor(
    make_host: MakeHost, architecture: str, flags: str, status: Status
) -> None:
    host = make_host({"proc/cpuinfo": f"processor : 0\nmodel name : Fast: one\nflags : {flags}\n"})
    found = machine.processor(host, architecture)
    assert found.status is status
    assert "Fast: one" in found.value


def test_a_processor_that_does_not_say_what_it_is(make_host: MakeHost) -> None:
    assert machine.processor(make_host({}), "riscv64").value == "riscv64"


def test_cores() -> None:
    assert machine.cores(range(4), math.inf).value == "4 (0-3)"
    assert machine.cores(range(4), 4.0).status is Status.OK
    assert machine.cores([0], math.inf).status is Status.WARNING
    throttled = machine.cores(range(8), 1.5)
    assert throttled.status is Status.WARNING
    assert throttled.value == "8 (0-7), of which 1.5 at a time"
    assert throttled.figures == {"cores": 1.5}


def test_memory_of_the_machine(make_host: MakeHost) -> None:
    host = make_host(_meminfo(MemTotal=16, MemAvailable=9))
    found = machine.memory(host, Allowance())
    assert (found.status, found.value) == (Status.OK, "9.0 GiB available of 16.0 GiB")


def test_memory_of_a_container(make_host: MakeHost) -> None:
    host = make_host(_meminfo(MemTotal=16, MemAvailable=9))
    found = machine.memory(host, Allowance(memory_bytes=8 * GIB, left_bytes=2 * GIB))
    assert (found.status, found.value) == (
        Status.WARNING,
        "2.0 GiB available of 8.0 GiB (the container's limit)",
    )
    assert found.figures["available_bytes"] == 2 * GIB


def test_a_limit_above_the_machine_is_none(make_host: MakeHost) -> None:
    host = make_host(_meminfo(MemTotal=16, MemAvailable=9))
    found = machine.memory(host, Allowance(memory_bytes=64 * GIB, left_bytes=64 * GIB))
    assert found.value == "9.0 GiB available of 16.0 GiB"


def test_memory_that_cannot_be_seen(make_host: MakeHost) -> None:
    assert machine.memory(make_host({}), Allowance()).status is Status.WARNING


@pytest.mark.parametrize(
    ("total", "free", "status", "value"),
    [
        (0, 0, Status.OK, "none"),
        (8, 8, Status.OK, "0 MiB used of 8.0 GiB"),
        (8, 7.5, Status.OK, "512 MiB used of 8.0 GiB"),
        (8, 4, Status.WARNING, "4.0 GiB used of 8.0 GiB"),
    ],
)
def test_swap(make_host: MakeHost, total: float, free: float, status: Status, value: str) -> None:
    found = machine.swap(make_host(_meminfo(SwapTotal=total, SwapFree=free)))
    assert (found.status, found.value) == (status, value)


def _pages(mode: str, total: int, free: int) -> dict[str, str]:
    meminfo = f"MemTotal: {16 * GIB // _KIB} kB\nHugepagesize: 2048 kB\n"
    return {
        "proc/meminfo": f"{meminfo}HugePages_Total: {total}\nHugePages_Free: {free}\n",
        "sys/kernel/mm/transparent_hugepage/enabled": mode,
    }


@pytest.mark.parametrize(
    ("mode", "total", "free", "status"),
    [
        ("always [madvise] never", 0, 0, Status.OK),
        ("[always] madvise never", 2048, 0, Status.OK),  # others use them
        ("always madvise [never]", 0, 0, Status.NOTE),
        ("always [madvise] never", 2048, 2048, Status.WARNING),
    ],
)
def test_huge_pages(make_host: MakeHost, mode: str, total: int, free: int, status: Status) -> None:
    found = machine.huge_pages(make_host(_pages(mode, total, free)))
    assert found.status is status
    assert found.figures["reserved_pages"] == total


def test_a_kernel_without_huge_pages(make_host: MakeHost) -> None:
    assert machine.huge_pages(make_host({})).value.startswith("transparent: not there")


_LISTED = "0, NVIDIA L4, 23034 MiB, 550.54\n1, NVIDIA L4, 23034 MiB, 550.54\n"
_TABLE = """ \t\x1b[4mGPU0\tGPU1\x1b[0m
 GPU0\tX\t{state}
 GPU1\t{state}\tX

Legend:

  X    = Self
  OK   = Status Ok
  CNS  = Chipset not supported
"""


def _failing(command: Sequence[str]) -> str:
    raise LLMServeError("nvidia-smi failed: no driver")


def test_gpus_are_listed(make_host: MakeHost) -> None:
    found = gpus(make_host({}), (0, 1), lambda command: _LISTED)
    assert found.status is Status.OK
    assert found.value == "0, NVIDIA L4, 23034 MiB, 550.54; 1, NVIDIA L4, 23034 MiB, 550.54"
    assert found.figures == {"gpus": 2}


def test_a_driver_that_does_not_answer(make_host: MakeHost) -> None:
    found = gpus(make_host({}), (0,), _failing)
    assert found.status is Status.PROBLEM
    assert "no driver" in found.advice


def test_no_gpu_is_not_asked_about(make_host: MakeHost) -> None:
    assert gpus(make_host({}), (), _failing).status is Status.OK


def test_a_driver_without_a_visible_gpu(make_host: MakeHost) -> None:
    found = gpus(make_host({"proc/driver/nvidia/version": "NVRM version: 550"}), (), _failing)
    assert found.status is Status.WARNING


@pytest.mark.parametrize(("state", "status"), [("OK", Status.OK), ("CNS", Status.NOTE)])
def test_peer_access(state: str, status: Status) -> None:
    found = gpu_peers(lambda command: _TABLE.format(state=state))
    assert found.status is status
    assert ("CNS" in found.value) == (state == "CNS")


def test_peer_access_that_cannot_be_asked_for() -> None:
    assert "no driver" in gpu_peers(_failing).advice
    assert gpu_peers(lambda command: "").value == "unknown"


_LINKS = """\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\x1b[0m
GPU0\t X \tNV18\t{far}\tPIX\t0-31
GPU1\tNV18\t X \tPHB\tPIX\t0-31
GPU2\t{far}\tPHB\t X \tSYS\t32-63

NIC0: mlx5_0
"""


@pytest.mark.parametrize(("far", "status"), [("PIX", Status.OK), ("NODE", Status.NOTE), ("SYS", Status.NOTE)])
def test_links_between_gpus(far: str, status: Status) -> None:
    """What else follows in a row, such as the way to a network card, is not one."""
    found = gpu_links(lambda command: _LINKS.format(far=far))
    assert found.status is status
    assert found.figures == {"pairs": 3, "nvlink_pairs": 1}
    assert "1 NV18" in found.value
    assert f"1 {far}" in found.value


def test_links_that_cannot_be_asked_for() -> None:
    assert "no driver" in gpu_links(_failing).advice
    assert gpu_links(lambda command: "").value == "unknown"


@pytest.mark.parametrize(
    ("modules", "driver", "has_rdma", "status", "value"),
    [
        ("", "", False, Status.OK, "none"),
        ("", "", True, Status.WARNING, "none"),
        ("gdrdrv 24576 0 - Live 0x0", "", True, Status.WARNING, "gdrdrv"),
        ("nvidia_peermem 16384 0 - Live 0x0", "", True, Status.OK, "nvidia_peermem"),
        ("", "NVRM version: NVIDIA UNIX Open Kernel Module 570", True, Status.OK, "open driver (DMA-BUF)"),
    ],
)
def test_modules_that_lead_to_gpu_memory(
    make_host: MakeHost, modules: str, driver: str, has_rdma: bool, status: Status, value: str
) -> None:
    host = make_host({"proc/modules": modules, "proc/driver/nvidia/version": driver})
    found = gpu_modules(host, has_rdma)
    assert (found.status, found.value) == (status, value)


@pytest.mark.parametrize(
    ("link", "status"),
    [("pid:[4026531836]", Status.OK), ("pid:[4026532441]", Status.NOTE), ("", Status.NOTE)],
)
def test_a_container_has_processes_of_its_own(link: str, status: Status) -> None:
    found = pid_namespace(link)
    assert found.status is status
    assert ("Between pods use RDMA" in found.advice) is (status is Status.NOTE)


NVLINK, FAR = "CUDA IPC over NVLink (NV18)", "through host memory (peer access: CNS)"


def path(between: str, by_nixl: str) -> KvPath:
    return KvPath(between, (("nixl", by_nixl), ("tcp", "pinned host memory, then a socket")))


def test_a_pair_without_peer_access_is_slower() -> None:
    found = gpu_paths([path("prefill-0 > decode-0", NVLINK), path("prefill-0 > decode-1", FAR)])
    assert found.status is Status.NOTE
    assert found.value == f"prefill-0 > decode-0 {NVLINK}; prefill-0 > decode-1 {FAR}"
    assert "slower" in found.advice
    assert found.figures == {"pairs": 2}


def test_pairs_with_peer_access_are_to_be_measured() -> None:
    found = gpu_paths([path("prefill-0 > decode-0", f"{NVLINK}, CUDA IPC over PCIe (PHB)")])
    assert "bench gpu" in found.advice
    one_is_far = gpu_paths([path("prefill-0 > decode-0", f"{NVLINK}, {FAR}")])
    assert "slower" in one_is_far.advice


def test_without_nixl_everything_is_staged() -> None:
    found = gpu_paths([KvPath("prefill-0 > decode-0", (("ucx", "x"), ("tcp", "x")))])
    assert found.value == "between all engines through pinned host memory and a socket"


def test_engines_without_disaggregation_move_no_kv() -> None:
    assert gpu_paths([]).status is Status.OK


def test_many_pairs_are_not_all_shown() -> None:
    assert gpu_paths([path(f"prefill-0 > decode-{n}", NVLINK) for n in range(10)]).value.endswith(
        "; and 2 more"
    )


def test_pinned_memory_is_counted_against_what_is_available() -> None:
    pinned = PinnedMemory(96 << 20, 2)
    assert pinned_memory(pinned, 192 << 20).status is Status.OK
    short = pinned_memory(pinned, (192 << 20) - 1)
    assert short.status is Status.WARNING
    assert "Only 192 MiB are available" in short.advice
    assert short.figures == {"pinned_bytes": 192 << 20, "available_bytes": (192 << 20) - 1}
