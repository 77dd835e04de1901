"""How much memory this process may still take: that of the machine, and of its control groups (containers).

File cache that nobody uses is given back when memory runs short: it counts as free.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_UNLIMITED_BYTES = 1 << 60  # version 1 writes "no limit" as a number near 2**63


def free_memory_bytes(root: Path = Path("/")) -> float:
    """math.inf where the system does not tell. root: of /proc and /sys, another one in tests."""
    return min([_available(root), *_left_in_groups(root)])


def free_huge_pages_bytes(huge_page_bytes: int, root: Path = Path("/")) -> int:
    """In huge pages that are set aside and not in use."""
    folder = root / f"sys/kernel/mm/hugepages/hugepages-{huge_page_bytes >> 10}kB"
    free, promised = _text(folder / "free_hugepages"), _text(folder / "resv_hugepages")
    return max(0, int(free or 0) - int(promised or 0)) * huge_page_bytes


def _available(root: Path) -> float:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return math.inf


def _left_in_groups(root: Path) -> Iterator[float]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield from _left(root / "sys/fs/cgroup", group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(root / "sys/fs/cgroup/memory", group, *names)


def _left(base: Path, group: str, limit: str, usage: str, cache: str) -> Iterator[float]:
    """Of this process's group and those above. In a container its own group stands at the root."""
    own = PurePosixPath(group)
    for path in (own, *own.parents):
        folder = base / str(path).lstrip("/")
        most = _text(folder / limit).strip()
        if most.isdigit() and int(most) < _UNLIMITED_BYTES:
            statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
            used = int(_text(folder / usage) or 0) - int(statistics.get(cache, 0))
            yield max(0.0, float(int(most) - used))


def _text(path: Path) -> str:
    """Empty for what is not there."""
    with suppress(OSError):
        return path.read_text()
    return ""
