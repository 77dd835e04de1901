"""The memory of the pool, as its owner has it: an anonymous file (memfd), which ends with its last user.

All of it is taken at the start, or the start fails: memory that is missing later is a SIGBUS. It stands in
free huge pages where enough are set aside, otherwise in common pages.
Its size is sealed: no process that attaches can pull it away from under the others.
"""

import math
import os
import secrets
from collections import abc
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from llmserve.core.errors import StartFailed
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.mapping import Mapping
from llmserve.kvstore.dram.shape import HUGE_PAGE_BYTES, NONCE_BYTES, ArenaDescription, ArenaShape, head
from llmserve.transfer.base import Int64Array, Region
from llmserve.transfer.shm.identity import ProcessNamespace

_STEP_BYTES = 256 << 20  # taken at once: between two steps signals are seen
_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL
_RESERVE_BYTES = 256 << 20  # for everything else on the machine
_UNLIMITED_BYTES = 1 << 60  # version 1 writes "no limit" as a number near 2**63


def free_memory_bytes(root: Path = Path("/")) -> float:
    """Memory that this process may still take; math.inf when unknown. root: parent of /proc and /sys."""
    return min([_available(root), *_left_in_groups(root)])


def free_huge_pages_bytes(huge_page_bytes: int, root: Path = Path("/")) -> int:
    """Bytes of huge pages that are set aside and not in use."""
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
    """What this process's group and those above leave. In a container the own group stands at the root."""
    own = PurePosixPath(group)
    for path in (own, *own.parents):
        folder = base / str(path).lstrip("/")
        most = _text(folder / limit).strip()
        if most.isdigit() and int(most) < _UNLIMITED_BYTES:
            statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
            used = int(_text(folder / usage) or 0) - int(statistics.get(cache, 0))
            yield max(0.0, float(int(most) - used))


def _text(path: Path) -> str:
    """The text of a file; empty if there is none."""
    with suppress(OSError):
        return path.read_text()
    return ""


class Arena:
    """Life: constructor -> close (idempotent). Blocks for a quarter of a second for each GB.

    capacity_bytes is rounded up to huge pages. cluster: stands in /proc/PID/maps, for people."""

    def __init__(
        self,
        cluster: str,
        capacity_bytes: int,
        *,
        free_bytes: Callable[[], float] = free_memory_bytes,
        free_huge_bytes: Callable[[int], int] = free_huge_pages_bytes,
    ) -> None:
        """Errors: StartFailed, naming what was wanted and what is free."""
        self.shape = ArenaShape(-(-capacity_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES)
        self.huge_pages = free_huge_bytes(HUGE_PAGE_BYTES) >= self.shape.total_bytes
        if not self.huge_pages:
            check_room(self.shape.total_bytes, free_bytes())
        self._nonce = secrets.token_hex(NONCE_BYTES // 2)
        self._fd = self._open(f"llmserve-kv-{cluster}")
        try:
            self._mapping = Mapping(self._fd, self.shape)
        except OSError as error:
            self._close_fd()
            raise _refusal(self.shape.total_bytes, free_bytes(), str(error)) from error
        self._mapping.write_head(head(self._nonce))

    @property
    def arena_id(self) -> str:
        return self._nonce

    @property
    def generations(self) -> Int64Array:
        """The generation of each page's slot; written by SlotPool alone."""
        return self._mapping.generations

    def checksum(self, slot: Slot) -> int:
        """The checksum that the slot's writer noted last; 0 if none."""
        return int(self._mapping.checksums[slot.page])

    def wipe_checksum(self, slot: Slot) -> None:
        """Removes the checksum of an earlier use."""
        self._mapping.checksums[slot.page] = 0

    @property
    def region(self) -> Region:
        """The data, which slots are spans of."""
        return self._mapping.region

    @property
    def regions(self) -> tuple[Region, Region]:
        """Data and front, for transports."""
        return self._mapping.region, self._mapping.front

    def view(self, offset: int, length_bytes: int) -> memoryview:
        """Bytes of the data, for the owner's own tiers under a reservation or a lease."""
        return self._mapping.view(offset, length_bytes)

    def description(self, transports: abc.Mapping[str, str] = MappingProxyType({})) -> str:
        """Text by which processes of the same user on this host attach, and those elsewhere by these
        transports. Valid until `close`."""
        here = ProcessNamespace.here()
        return ArenaDescription(
            boot_id=here.boot_id,
            pid_namespace=here.pid_namespace,
            pid=os.getpid(),
            fd=self._fd,
            inode=os.fstat(self._fd).st_ino,
            nonce=self._nonce,
            capacity_bytes=self.shape.capacity_bytes,
            transports=dict(transports),
        ).to_text()

    def close(self) -> None:
        """Idempotent. The memory is freed when the last attached process has detached, too."""
        if self._fd >= 0:
            self._mapping.close()
            self._close_fd()

    # -- inside

    def _open(self, name: str) -> int:
        """Returns when all memory is taken."""
        if self.huge_pages:
            with suppress(OSError):  # others were faster, or may not be used by this user
                return _create(name, self.shape.total_bytes, os.MFD_HUGETLB)
            self.huge_pages = False
        try:
            return _create(name, self.shape.total_bytes, 0)
        except OSError as error:
            raise _refusal(self.shape.total_bytes, free_memory_bytes(), str(error)) from error

    def _close_fd(self) -> None:
        os.close(self._fd)
        self._fd = -1


def _create(name: str, total_bytes: int, flags: int) -> int:
    """Errors: OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, total_bytes)
        for offset in range(0, total_bytes, _STEP_BYTES):
            os.posix_fallocate(fd, offset, min(_STEP_BYTES, total_bytes - offset))
        fcntl(fd, F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_room(total_bytes: int, free: float) -> None:
    """Errors: StartFailed."""
    if total_bytes + _RESERVE_BYTES > free:
        raise _refusal(total_bytes, free, f"{_RESERVE_BYTES >> 20} MiB must stay free")


def _refusal(total_bytes: int, free: float, reason: str) -> StartFailed:
    left = "unknown" if math.isinf(free) else f"{free / (1 << 20):.0f} MiB"
    return StartFailed(
        f"the KV pool wants {total_bytes / (1 << 20):.0f} MiB of shared memory, free: {left} ({reason}); "
        "make its tier `dram` smaller"
    )
