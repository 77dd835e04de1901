"""A device without hardware, for tests and benchmarks.

Its memory is a file that is mapped twice: without any access, at the addresses that everybody sees, and
readable for the device alone. So whoever dereferences an address dies, the kernel's copies get EFAULT, and a
staging that was left out is found. A copy fails when its host memory is not pinned from its start to its end.
Copies and kernels end late, in the order of their streams: whoever does
not wait for a mark sees the old bytes.
"""

import mmap
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Int64Array, Memory, Region
from llmserve.transfer.devices.copies import Bytes, Mark, places
from llmserve.transfer.shm.memory import ProcessMemory
from llmserve.transfer.shm.memory import copies as cut

_JOIN_SECONDS = 10.0


@dataclass(eq=False, slots=True)
class LateMark:
    """The end of one piece of work. failure: why the work failed."""

    failure: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def reached(self) -> bool:
        ended = self.ended.is_set()  # read first: the failure is noted before the end
        if self.failure:
            raise TransferError(self.failure)
        return ended

    def wait(self) -> None:
        self.ended.wait()
        self.reached()


class LateStream:
    """Does one piece of work after the other on a thread of its own, each not before `lateness_seconds` have
    passed since it was submitted."""

    def __init__(self, name: str, lateness_seconds: float) -> None:
        self._name = name
        self._lateness_seconds = lateness_seconds
        self._queue: queue.SimpleQueue[tuple[float, Callable[[], None], LateMark] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], None]) -> LateMark:
        mark = LateMark()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._queue.put((time.monotonic() + self._lateness_seconds, work, mark))
        return mark

    def close(self) -> None:
        """Ends the thread after the work that was submitted. Idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            due, work, mark = job
            if (rest := due - time.monotonic()) > 0:
                time.sleep(rest)
            try:
                work()
            except TransferError as error:
                mark.failure = error.message
            del job, work  # they show the memory of the copy
            mark.ended.set()


@dataclass(frozen=True, slots=True)
class _FakeAllocation:
    """own: the mapping that only the device reads and writes. kept: the mapping without access."""

    region: Region
    own: Bytes
    kept: Bytes


class FakeDevice:
    """Copies of a device that does not exist. pinned_bytes: the most memory that can be pinned."""

    def __init__(
        self, ordinal: int = 0, lateness_seconds: float = 0.001, pinned_bytes: int = 1 << 30
    ) -> None:
        self.memory = Memory(ordinal)
        self.copied_bytes = 0
        self.threads: set[str] = set()  # names of the threads whose current device it is
        self._pinned_bytes = pinned_bytes
        self._pins: dict[int, int] = {}  # length by address
        self._allocations: list[_FakeAllocation] = []
        self._outgoing = LateStream("fake-device-out", lateness_seconds)
        self._incoming = LateStream("fake-device-in", lateness_seconds)
        self._kernels = LateStream("fake-device-kernels", lateness_seconds)
        self._failed_kernel: TransferError | None = None
        self._engine = ProcessMemory()  # works beside Python, as the copy engines of a device do
        self._good_copies = -1  # copies until the next failure; -1: none fails
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Notes the thread: no library asks for this device."""
        self.threads.add(threading.current_thread().name)

    def allocate(self, size_bytes: int) -> Region:
        fd = os.memfd_create("fake-device", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            own = np.frombuffer(mmap.mmap(fd, size_bytes), np.uint8)
            kept = np.frombuffer(mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=0), np.uint8)
        finally:
            os.close(fd)
        region = Region(kept.ctypes.data, size_bytes, self.memory)
        self._allocations.append(_FakeAllocation(region, own, kept))
        return region

    def pinned(self, size_bytes: int) -> Bytes:
        made = np.empty(size_bytes, np.uint8)
        weakref.finalize(made, self.pin(made)).atexit = False
        return made

    def pin(self, memory: Bytes) -> Callable[[], None]:
        address, size = memory.ctypes.data, memory.nbytes
        with self._lock:
            if size > self._pinned_bytes:
                raise TransferError(f"no pinned memory: {size} bytes wanted, {self._pinned_bytes} left")
            if any(start < address + size and address < start + other for start, other in self._pins.items()):
                raise TransferError(f"{size} bytes of host memory are pinned already, in part or whole")
            self._pinned_bytes -= size
            self._pins[address] = size

        def unpin() -> None:
            with self._lock:
                self._pinned_bytes += self._pins.pop(address)

        return unpin

    def gather(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        to, come_from = places(lengths, packed), self._own_addresses(starts)
        return self._copy(self._outgoing, to, come_from, lengths, packed)

    def scatter(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        to, come_from = self._own_addresses(starts), places(lengths, packed)
        return self._copy(self._incoming, to, come_from, lengths, packed)

    def mark(self) -> Mark:
        return self._kernels.submit(self._check_kernels)

    def close(self) -> None:
        for stream in (self._outgoing, self._incoming, self._kernels):
            stream.close()
        self._allocations.clear()

    # -- for tests

    def pinned_ranges(self) -> list[tuple[int, int]]:
        """Returns the addresses and lengths of the host memory that is pinned now."""
        with self._lock:
            return list(self._pins.items())

    def view(self, region: Region) -> Bytes:
        """Returns the bytes as kernels of the device see them, to be read and written."""
        return next(one.own for one in self._allocations if one.region == region)

    def launch(self, kernel: Callable[[], None]) -> None:
        """Runs a kernel, late, after those that were launched before. One that raises TransferError has
        failed, and so have the marks behind it."""

        def run() -> None:
            try:
                kernel()
            except TransferError as error:
                self._failed_kernel = error

        self._kernels.submit(run)

    def fail_copy(self, after: int = 0) -> None:
        """Lets one copy fail, after so many good ones."""
        self._good_copies = after

    # -- inside

    def _check_kernels(self) -> None:
        if self._failed_kernel is not None:
            raise self._failed_kernel

    def _copy(
        self, stream: LateStream, to: Int64Array, come_from: Int64Array, lengths: Int64Array, packed: Bytes
    ) -> Mark:
        fails = self._draw_failure()
        self._check_pinned(packed)

        def move() -> None:
            if fails:
                raise TransferError(f"a copy of {self.memory} failed")
            self._check_pinned(packed)
            for call in cut(to, come_from, lengths):
                self._engine.read(os.getpid(), call)

        self.copied_bytes += int(lengths.sum())
        return stream.submit(move)

    def _draw_failure(self) -> bool:
        with self._lock:
            fails = self._good_copies == 0
            self._good_copies = max(-1, self._good_copies - 1)
        return fails

    def _check_pinned(self, packed: Bytes) -> None:
        address, size = packed.ctypes.data, packed.nbytes
        pins = self.pinned_ranges()
        if size and not any(start <= address <= address + size <= start + length for start, length in pins):
            raise TransferError(f"{size} bytes of host memory are not pinned")

    def _own_addresses(self, starts: Int64Array) -> Int64Array:
        """Errors: TransferError for an address that is not of this device."""
        own = np.zeros_like(starts)
        for one in self._allocations:
            offsets = starts - one.region.address
            inside = (offsets >= 0) & (offsets < one.region.length_bytes)
            own[inside] = one.own.ctypes.data + offsets[inside]
        if not own.all():
            raise TransferError(f"an address lies outside the {self.memory}")
        return own
