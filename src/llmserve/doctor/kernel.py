"""What the kernel lets a process have (shared and locked memory, open files, disk, the memory of
other processes), and its settings of TCP and RDMA."""

import os
import resource
import shutil
from pathlib import Path

from llmserve.doctor import Finding, note, ok, problem, warning
from llmserve.runner.host import CAP_SYS_PTRACE, GIB, MIB, Host, RdmaPort, may_lock, size

_DOCKER_SHM_BYTES = 64 * MIB
_FEW_FILES = 1024
_MANY_FILES = 8192
_MORE_SHM = "docker run --shm-size=2g (or --ipc=host); in Kubernetes an emptyDir with medium: Memory."


def shared_memory(size_bytes: int, free_bytes: int) -> Finding:
    """Sizes of the file system at /dev/shm; both 0 when there is none."""
    figures = {"size_bytes": size_bytes, "free_bytes": free_bytes}
    if not size_bytes:
        return problem("/dev/shm", "not there", f"vLLM's processes talk through it: {_MORE_SHM}", **figures)
    value = f"{size(free_bytes)} free of {size(size_bytes)}"
    if size_bytes <= _DOCKER_SHM_BYTES:
        advice = f"Docker's default: an engine that fills it is killed (SIGBUS). Make it larger: {_MORE_SHM}"
        return problem("/dev/shm", value, advice, **figures)
    if free_bytes < GIB / 2:
        advice = (
            "vLLM sets some 0.2 GiB aside there for each engine, and one that finds it full is killed "
            f"(SIGBUS). Remove what others left there, or make it larger: {_MORE_SHM}"
        )
        return warning("/dev/shm", value, advice, **figures)
    return ok("/dev/shm", value, **figures)


def open_files(soft: int, hard: int) -> Finding:
    """soft, hard: as of resource.getrlimit; RLIM_INFINITY: no limit."""
    value = f"{_limit(soft)} (may be raised to {_limit(hard)})" if soft != hard else _limit(soft)
    advice = "Each client's connection takes one. Before `llmserve up`: ulimit -n 65536"
    if resource.RLIM_INFINITY in (hard, soft) or hard >= _MANY_FILES:
        hint = advice
    else:
        hint = f"{advice} (which the hard limit of {hard} forbids: raise it in limits.conf or the container)"
    if soft == resource.RLIM_INFINITY or soft >= _MANY_FILES:
        return ok("open files", value, soft=soft, hard=hard)
    if soft < _FEW_FILES:
        return warning(
            "open files", value, f"Too few for an engine and some clients. {hint}", soft=soft, hard=hard
        )
    return note(
        "open files", value, f"Enough for some hundred clients at a time. {hint}", soft=soft, hard=hard
    )


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def locked_memory(soft: int, capabilities: int, has_rdma: bool) -> Finding:
    """soft: bytes; RLIM_INFINITY: no limit. RDMA pins the KV memory that it serves."""
    if soft == resource.RLIM_INFINITY:
        return ok("locked memory", "unlimited")
    if may_lock(capabilities):
        return ok(
            "locked memory", f"{size(soft)}, but this process is exempt (CAP_IPC_LOCK)", soft_bytes=soft
        )
    if not has_rdma:
        return ok("locked memory", f"{size(soft)}; only RDMA needs more", soft_bytes=soft)
    advice = (
        "RDMA pins all KV memory, and registering more than this fails: ulimit -l unlimited, or "
        "docker run --ulimit memlock=-1"
    )
    return problem("locked memory", size(soft), advice, soft_bytes=soft)


def process_access(host: Host, capabilities: int) -> Finding:
    """Checks whether one process of a user may read the memory of another, as the shm transport does.
    Where Yama wants permission (1), the transport gives it itself."""
    scope = host.text("proc/sys/kernel/yama/ptrace_scope")
    value = f"ptrace_scope {scope}" if scope else "not restricted"
    if scope in ("", "0", "1"):
        return ok("process access", value)
    if scope == "2" and capabilities >> CAP_SYS_PTRACE & 1:
        return ok("process access", f"{value}, and this process has CAP_SYS_PTRACE")
    advice = (
        "The shm transport may not read its neighbours' memory; another transport is used. To allow it: "
        "sysctl kernel.yama.ptrace_scope=1" + (" (after a restart: 3 is final)" if scope == "3" else "")
    )
    return note("process access", value, advice)


_LITTLE_DISK_BYTES = 10 * GIB
_FULL_DISK_BYTES = 1 * GIB


def disk_cache(name: str, folder: Path, variable: str) -> Finding:
    """folder: need not be there yet. variable: name of the one that moves it elsewhere."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        advice = f"This user may not write there: set {variable} to a folder of yours."
        return problem(name, str(folder), advice, free_bytes=0)
    return disk_room(name, folder, shutil.disk_usage(there).free, variable)


def disk_room(name: str, folder: Path, free_bytes: int, variable: str) -> Finding:
    value = f"{size(free_bytes)} free at {folder}"
    advice = f"Free some, or set {variable} to a folder on a larger disk."
    if free_bytes < _FULL_DISK_BYTES:
        return problem(name, value, f"No model fits. {advice}", free_bytes=free_bytes)
    if free_bytes < _LITTLE_DISK_BYTES:
        return warning(name, value, f"Larger models will not fit. {advice}", free_bytes=free_bytes)
    return ok(name, value, free_bytes=free_bytes)


_IPV4 = "proc/sys/net/ipv4"
_FAST_LINK_BYTES = 4 * MIB  # in flight on 100 Gbit/s at 0.3 ms
_WANTED = "cubic"


def congestion_control(host: Host) -> Finding:
    """The tcp transport asks for cubic itself: bbr, a common default, stalls bursts for 200 ms."""
    current = host.text(f"{_IPV4}/tcp_congestion_control") or "unknown"
    allowed = host.text(f"{_IPV4}/tcp_allowed_congestion_control").split()
    available = host.text(f"{_IPV4}/tcp_available_congestion_control").split()
    if not current.startswith("bbr"):
        return ok("congestion control", current)
    if _WANTED in allowed or _WANTED in available:
        advice = (
            "The tcp transport asks for cubic itself where it may. NIXL over TCP does not, and bbr "
            "stalls its bursts for up to 200 ms: sysctl net.ipv4.tcp_congestion_control=cubic"
        )
        return note("congestion control", current, advice)
    advice = "bbr stalls transfers for up to 200 ms, and cubic is not loaded: modprobe tcp_cubic"
    return warning("congestion control", current, advice)


def socket_buffers(host: Host) -> Finding:
    """The third number of tcp_rmem and tcp_wmem is the size to which TCP may grow its buffers by itself."""
    receive, send = _largest(host, "tcp_rmem"), _largest(host, "tcp_wmem")
    value = f"receive {size(receive)}, send {size(send)} at most"
    figures = {"receive_bytes": receive, "send_bytes": send}
    if min(receive, send) >= _FAST_LINK_BYTES:
        return ok("socket buffers", value, **figures)
    advice = (
        "Enough on one machine; between machines on a fast network, allow 16 MiB: "
        'sysctl net.ipv4.tcp_rmem="4096 131072 16777216" net.ipv4.tcp_wmem="4096 65536 16777216"'
    )
    return note("socket buffers", value, advice, **figures)


def _largest(host: Host, name: str) -> int:
    numbers = host.text(f"{_IPV4}/{name}").split()
    return int(numbers[-1]) if numbers else 0


def rdma(host: Host, ports: list[RdmaPort]) -> Finding:
    if not ports:
        return ok("RDMA", "none", active_ports=0)
    value = "; ".join(" ".join(filter(None, (one.name, one.state, one.rate, one.link))) for one in ports)
    active = sum(port.is_active for port in ports)
    if not active:
        advice = "No port is active: check cable, switch and, for InfiniBand, the subnet manager."
        return warning("RDMA", value, advice, active_ports=0)
    if not any(name.startswith("uverbs") for name in host.names("dev/infiniband")):
        advice = (
            "The devices are there, but this process may not use them (/dev/infiniband is empty): "
            "docker run --device=/dev/infiniband"
        )
        return problem("RDMA", value, advice, active_ports=active)
    return ok("RDMA", value, active_ports=active)
