"""The files in which the kernel describes this machine: memory, control groups, capabilities, devices."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

GIB = 1 << 30
MIB = 1 << 20
_KIB = 1 << 10


@dataclass(frozen=True, slots=True)
class Host:
    """root: directory of /proc, /sys and /dev; the tests put others there."""

    root: Path = Path("/")

    def path(self, name: str) -> Path:
        """name: such as "proc/meminfo"."""
        return self.root / name

    def text(self, name: str) -> str:
        """Returns the text without surrounding space; empty when there is no such file, or it may not be
        read."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return ""

    def memory(self) -> Mapping[str, int]:
        """Returns /proc/meminfo: sizes in bytes, counts (HugePages_Total and such) as they are."""
        return dict(_fields(self.text("proc/meminfo")))

    def names(self, folder: str) -> list[str]:
        """Returns the sorted names in a folder; none when it is not there."""
        try:
            return sorted(path.name for path in self.path(folder).iterdir())
        except OSError:
            return []


def _fields(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            yield name, int(words[0]) * (_KIB if words[1:] == ["kB"] else 1)


def size(size_bytes: float) -> str:
    """Returns text such as `23.5 GiB` or `64 MiB`."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / MIB:.0f} MiB"


_UNLIMITED_BYTES = 1 << 60  # version 1 writes "no limit" as a number near 2**63


@dataclass(frozen=True, slots=True)
class Allowance:
    """The tightest limits on the way from this process's control group to the root; math.inf: none.
    left_bytes: memory that may still be allocated under the limits."""

    cores: float = math.inf
    memory_bytes: float = math.inf
    left_bytes: float = math.inf


def allowance(host: Host) -> Allowance:
    memory = [_memory_v1(host, folder) for folder in _folders(host, "memory")]
    memory += [_memory_v2(host, folder) for folder in _folders(host, "")]
    cores = [_cores_v1(host, folder) for folder in _folders(host, "cpu")]
    cores += [_cores_v2(host, folder) for folder in _folders(host, "")]
    return Allowance(
        cores=min(cores, default=math.inf),
        memory_bytes=min((limit for limit, _ in memory), default=math.inf),
        left_bytes=min((max(0.0, limit - used) for limit, used in memory), default=math.inf),
    )


def available_bytes(host: Host, allowed: Allowance) -> float:
    """Returns what may still be allocated without swapping; math.inf when that cannot be seen."""
    return min(host.memory().get("MemAvailable", math.inf), allowed.left_bytes)


def _folders(host: Host, controller: str) -> Iterator[str]:
    """Yields the folder of this process's group and those above it. In a container the group's path may be
    that of the host, while its files stand at the root: a folder that is not there has no limits in it."""
    for line in host.text("proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = PurePosixPath(path)
            for group in (own, *own.parents):
                yield str(PurePosixPath("sys/fs/cgroup", controller, str(group).lstrip("/")))


def _cores_v2(host: Host, folder: str) -> float:
    quota, _, period = host.text(f"{folder}/cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() else math.inf


def _cores_v1(host: Host, folder: str) -> float:
    """A quota of -1 means no limit."""
    quota, period = host.text(f"{folder}/cpu.cfs_quota_us"), host.text(f"{folder}/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else math.inf


def _memory_v2(host: Host, folder: str) -> tuple[float, float]:
    return _memory(host, f"{folder}/memory", "max", "current", "inactive_file")


def _memory_v1(host: Host, folder: str) -> tuple[float, float]:
    return _memory(host, f"{folder}/memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file")


def _memory(host: Host, prefix: str, limit: str, usage: str, cache: str) -> tuple[float, float]:
    """Returns limit and use. File cache that nobody uses does not count as used: the kernel gives it back
    when memory runs short."""
    most, used = host.text(f"{prefix}.{limit}"), host.text(f"{prefix}.{usage}")
    if not most.isdigit() or int(most) >= _UNLIMITED_BYTES:
        return math.inf, 0.0
    statistics = dict(line.split() for line in host.text(f"{prefix}.stat").splitlines())
    return float(most), int(used or 0) - float(statistics.get(cache, 0))


_CAP_IPC_LOCK, CAP_SYS_PTRACE = 14, 19


def effective_capabilities(host: Host) -> int:
    """Returns CapEff of this process as a bit mask; 0 when it cannot be read."""
    for line in host.text("proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value.strip(), 16)
    return 0


def may_lock(capabilities: int) -> bool:
    """Says whether the limit of locked memory does not hold for a process."""
    return bool(capabilities >> _CAP_IPC_LOCK & 1)


_INFINIBAND = "sys/class/infiniband"


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """name: DEVICE/PORT."""

    name: str
    state: str
    rate: str
    link: str

    @property
    def is_active(self) -> bool:
        return self.state == "ACTIVE"


def rdma_ports(host: Host) -> list[RdmaPort]:
    return list(_rdma_ports(host))


def _rdma_ports(host: Host) -> Iterator[RdmaPort]:
    for device in host.names(_INFINIBAND):
        for port in host.names(f"{_INFINIBAND}/{device}/ports"):
            folder = f"{_INFINIBAND}/{device}/ports/{port}"
            state = host.text(f"{folder}/state").rpartition(":")[2].strip() or "unknown"
            rate, link = host.text(f"{folder}/rate"), host.text(f"{folder}/link_layer")
            yield RdmaPort(f"{device}/{port}", state, rate, link)
