"""Processor, memory and GPUs, and the paths of KV between those."""

import math
from collections import Counter
from collections.abc import Sequence

from llmserve.config.plan_types import ranges
from llmserve.core.errors import LLMServeError
from llmserve.doctor import Finding, note, ok, problem, warning
from llmserve.runner.gpus import LINKS, PEERS, KvPath, Tool, gpu_matrix, pinned_text, total_bytes
from llmserve.runner.host import GIB, Allowance, Host, available_bytes, size
from llmserve.transfer.pinned import PinnedMemory

_LITTLE_BYTES = 4 * GIB  # one CPU engine with the smallest model and 1 GiB of KV takes 3.5 GiB
_X86 = ("x86_64", "amd64")
_SHOWN_PAIRS = 8


def system(name: str, release: str, architecture: str) -> Finding:
    """Takes what os.uname() says."""
    value = f"{name} {release}, {architecture}"
    if name != "Linux":
        return problem("system", value, "LLMServe runs on Linux only; use a container or a virtual machine.")
    return ok("system", value)


def processor(host: Host, architecture: str) -> Finding:
    """Checks what vLLM's CPU build can use."""
    info = dict(_cpu_info(host))
    model, flags = info.get("model name", architecture), info.get("flags", "").split()
    if architecture.lower() not in _X86 or not flags:
        return ok("processor", model)
    if "avx2" not in flags:
        advice = "vLLM's CPU build needs AVX2: only the simulated engine and GPUs will run here."
        return warning("processor", model, advice)
    if "avx512f" not in flags:
        return note("processor", f"{model}, AVX2", "Without AVX-512, engines on the CPU are slower.")
    if "avx512_bf16" not in flags:
        advice = "bfloat16 is emulated: engines on the CPU are slower."
        return note("processor", f"{model}, AVX-512", advice)
    return ok("processor", f"{model}, AVX-512 with bfloat16")


def _cpu_info(host: Host) -> list[tuple[str, str]]:
    """Returns the fields of the last core."""
    lines = (line.partition(":") for line in host.text("proc/cpuinfo").splitlines())
    return [(name.strip(), value.strip()) for name, _, value in lines]


def cores(affinity: Sequence[int], quota: float) -> Finding:
    """affinity: cores that this process may run on. quota: number of cores that it may use at a time."""
    value = f"{len(affinity)} ({ranges(affinity)})"
    if quota < len(affinity):
        advice = (
            f"The container may use {quota:g} cores at a time, but sees {len(affinity)}: engines that bind "
            "to more are stopped again and again. Give it whole cores (docker run --cpuset-cpus=...), or "
            "name as many in deployment.local.cores."
        )
        return warning("cores", f"{value}, of which {quota:g} at a time", advice, cores=quota)
    if len(affinity) == 1:
        advice = "Two engines share one core: expect slow tokens."
        return warning("cores", value, advice, cores=1)
    return ok("cores", value, cores=len(affinity))


def memory(host: Host, allowed: Allowance) -> Finding:
    found = host.memory()
    if "MemTotal" not in found:
        return warning("memory", "unknown", "/proc/meminfo cannot be read: memory was not checked.")
    total = total_bytes(host, allowed)
    available = available_bytes(host, allowed)
    where = (
        "" if math.isinf(allowed.memory_bytes) or total == found["MemTotal"] else " (the container's limit)"
    )
    value = f"{size(available)} available of {size(total)}{where}"
    if available < _LITTLE_BYTES:
        advice = "An engine on the CPU takes 3.5 GiB, even with a small model: free some, or raise the limit."
        return warning("memory", value, advice, total_bytes=total, available_bytes=available)
    return ok("memory", value, total_bytes=total, available_bytes=available)


def swap(host: Host) -> Finding:
    found = host.memory()
    total = found.get("SwapTotal", 0)
    used = total - found.get("SwapFree", 0)
    value = f"{size(used)} used of {size(total)}" if total else "none"
    if used > GIB:
        advice = (
            "Memory was short here. Engines whose pages are swapped out stall: lower kv_cache.memory_gb, or "
            "stop what else runs."
        )
        return warning("swap", value, advice, total_bytes=total, used_bytes=used)
    return ok("swap", value, total_bytes=total, used_bytes=used)


def huge_pages(host: Host) -> Finding:
    """LLMServe uses transparent huge pages, which the kernel gives to large allocations by itself."""
    found = host.memory()
    page = found.get("Hugepagesize", 0)
    total, free = found.get("HugePages_Total", 0), found.get("HugePages_Free", 0)
    mode = _transparent_mode(host)
    value = f"transparent: {mode}; {total} reserved, {free} free"
    figures = {"reserved_pages": total, "free_pages": free, "page_bytes": page}
    if free * page > found.get("MemTotal", 0) / 10:
        advice = (
            f"{size(free * page)} are set aside as huge pages that nobody uses. LLMServe takes them "
            "only for a DRAM tier that fits into them as a whole. To give them back: sysctl vm.nr_hugepages=0"
        )
        return warning("huge pages", value, advice, **figures)
    if mode == "never":
        advice = (
            "KV memory is mapped in 4 KiB pages, which costs some speed: "
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
        return note("huge pages", value, advice, **figures)
    return ok("huge pages", value, **figures)


def _transparent_mode(host: Host) -> str:
    """Returns the mode in brackets of `always [madvise] never`."""
    words = host.text("sys/kernel/mm/transparent_hugepage/enabled").split()
    return next((word.strip("[]") for word in words if word.startswith("[")), "not there")


_QUERY = ("nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader")
_NVLINK = "NV"
_FAR_LINKS = ("NODE", "SYS")  # across the bridges or the processors of the machine
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of Linux


def gpus(host: Host, devices: Sequence[int], tool: Tool) -> Finding:
    """devices: indices of /dev/nvidiaN. Without any, nvidia-smi is not asked."""
    driver = host.text("proc/driver/nvidia/version")
    if not devices and driver:
        advice = (
            "The NVIDIA driver is loaded, but no GPU is visible here: docker run --gpus all, and look at "
            "CUDA_VISIBLE_DEVICES."
        )
        return warning("GPUs", "none visible", advice, gpus=0)
    if not devices:
        return ok("GPUs", "none; engines run on the CPU", gpus=0)
    try:
        lines = filter(None, map(str.strip, tool(_QUERY).splitlines()))
    except LLMServeError as error:
        advice = f"The driver does not answer ({error.message}): install it again, or restart the machine."
        return problem("GPUs", f"{len(devices)} devices", advice, gpus=len(devices))
    return ok("GPUs", "; ".join(lines), gpus=len(devices))


def gpu_peers(tool: Tool) -> Finding:
    """Checks, on machines with several GPUs, whether they reach each other's memory."""
    try:
        matrix = gpu_matrix(tool(PEERS))
    except LLMServeError as error:
        return note("GPU peer access", "unknown", f"It was not checked: {error.message}.")
    apart = sorted({state for row in matrix for state in row} - {"OK", "X"})
    if not matrix:
        return note("GPU peer access", "unknown", "nvidia-smi topo -p2p r printed no table.")
    if apart:
        advice = "KV between GPUs that do not reach each other goes through host memory, which is slower."
        return note("GPU peer access", f"not between all ({', '.join(apart)})", advice)
    return ok("GPU peer access", f"between all {len(matrix)}")


def gpu_links(tool: Tool) -> Finding:
    """Counts, on machines with several GPUs, the links between them."""
    try:
        matrix = gpu_matrix(tool(LINKS))
    except LLMServeError as error:
        return note("GPU links", "unknown", f"They were not looked at: {error.message}.")
    count = len(matrix)
    links = [row[column] for index, row in enumerate(matrix) for column in range(index + 1, count)]
    if not links:
        return note("GPU links", "unknown", "nvidia-smi topo -m printed no table.")
    nvlinks = sum(link.startswith(_NVLINK) for link in links)
    kinds = ", ".join(f"{number} {link}" for link, number in sorted(Counter(links).items()))
    value, figures = f"{count} GPUs: {kinds}", {"pairs": len(links), "nvlink_pairs": nvlinks}
    if any(link in _FAR_LINKS for link in links):
        advice = "KV is slow between GPUs whose link is NODE or SYS: `KV paths` says which engines they are."
        return note("GPU links", value, advice, **figures)
    return ok("GPU links", value, **figures)


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


def gpu_modules(host: Host, has_rdma: bool) -> Finding:
    """Checks whether network cards reach the memory of GPUs: by nvidia_peermem, or by DMA-BUF, which only the
    open modules of the driver have."""
    loaded = {line.partition(" ")[0] for line in host.text("proc/modules").splitlines()}
    there = [name for name in ("nvidia_peermem", "gdrdrv") if name in loaded]
    is_open = "Open Kernel Module" in host.text("proc/driver/nvidia/version")
    value = ", ".join([*there, *(["open driver (DMA-BUF)"] if is_open else [])]) or "none"
    if has_rdma and not is_open and "nvidia_peermem" not in loaded:
        advice = (
            "The network cards do not reach GPU memory, so KV between hosts goes through host memory: "
            "modprobe nvidia_peermem, or install the driver's open kernel modules."
        )
        return warning("GPU modules", value, advice)
    return ok("GPU modules", value)


def pid_namespace(link: str) -> Finding:
    """link: what /proc/self/ns/pid points to. CUDA IPC needs one PID namespace for both processes, in which
    each sees the GPU of the other one."""
    if link == _FIRST_PID_NAMESPACE:
        return ok("PID namespace", "the host's")
    advice = (
        "Engines of one `llmserve up` share it. To those in another container or pod NIXL finds no CUDA IPC, "
        "and goes over TCP without a word. Run both in one container, or in Docker give both containers one "
        "PID namespace and all GPUs (docker run --pid=container:NAME --gpus all). Between pods use RDMA, or "
        "leave nixl out: hostPID opens the node's processes to the pod, and shows no GPU of another pod."
    )
    return note("PID namespace", f"a container's own, {link or 'unknown'}", advice)
