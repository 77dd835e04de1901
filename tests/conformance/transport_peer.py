"""The ends of a transfer for tests/conformance/test_transport*.py: this process, or one of its own.

To run both suites on another transport, add its kind to KINDS.
"""

import functools
import multiprocessing
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmserve.core.errors import TransferError
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import CERTIFICATES_VARIABLE, SECRET_VARIABLE, Credentials
from llmserve.transfer.base import (
    Batch,
    Int64Array,
    PeerName,
    Region,
    Spans,
    Transfer,
    TransferState,
    TransferStatus,
    Transport,
)
from llmserve.transfer.devices import Copies, Staging
from llmserve.transfer.devices.cuda import CudaCopies
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.faults import FaultPlan
from llmserve.transfer.faulty import FaultyTransport
from llmserve.transfer.select import makers

# Bytes of the regions of each end, and the seeds of what is in them.
NEAR_BYTES = 65 << 20
FAR_BYTES = ((256 << 20) + 4099, 32 << 20)  # region 0 is only read, but for the largest write
MORTAL_BYTES = (64 << 20, 1 << 20)
FAR_SEED, MORTAL_SEED = 3, 8
UNTOUCHED = 0xA5
DEVICE_SECONDS = 0.0005  # how late a copy of a device ends
PATIENCE_SECONDS = 20.0
CHUNK_BYTES = 4 << 20  # of memory that is looked at
_TICK_SECONDS = 0.001
_POLL_SECONDS = 0.0001
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Kind:
    """transport: its name for `makers`. environment: what its processes run with. faulty: behind the
    proxy, without a fault. wires: how the ends know each other. on_device: whose memory is that of a device:
    the near end's, or the far ends'. on_gpu: the device is a GPU, and not a fake one."""

    transport: str
    environment: Mapping[str, str] = field(default_factory=dict)
    faulty: bool = False
    wires: Literal["open", "secret", "tls"] = "open"
    on_device: frozenset[str] = frozenset()
    on_gpu: bool = False

    def device(self) -> Copies:
        """Errors: TransportUnavailable without a GPU."""
        return CudaCopies(0) if self.on_gpu else FakeDevice(lateness_seconds=DEVICE_SECONDS)

    def make(self, staging: Staging | None = None) -> Transport:
        """Errors: TransportUnavailable."""
        credentials = Credentials.read(CallerRole.WORKER, "peer")
        made = makers("127.0.0.1", staging, credentials)[self.transport]()
        return FaultyTransport(made, FaultPlan(), staging=staging) if self.faulty else made

    def on_devices(self) -> "dict[str, Kind]":
        """This kind with each memory at either end, but for the host's at both."""
        sides = {"near": {"near"}, "far": {"far"}, "both": {"near", "far"}}
        return {
            f"{self.transport}-{'gpu' if self.on_gpu else 'device'}-{name}": replace(
                self, on_device=frozenset(ends)
            )
            for name, ends in sides.items()
        }


KINDS = {
    "tcp": Kind("tcp", wires="secret"),
    "tcp-tls": Kind("tcp", wires="tls"),
    "nixl": Kind("nixl"),
    "nixl-tcp": Kind("nixl", {"UCX_TLS": "tcp,self"}),  # as between hosts without RDMA: not one-sided
    "ucx": Kind("ucx"),
    "nccl": Kind("nccl"),  # gloo where there is no GPU
    "shm": Kind("shm"),
    "faulty-tcp": Kind("tcp", faulty=True),
    **Kind("tcp").on_devices(),
    **Kind("ucx").on_devices(),
    **Kind("nixl", on_gpu=True).on_devices(),
    **Kind("tcp", on_gpu=True).on_devices(),
    **Kind("ucx", on_gpu=True).on_devices(),
}


def pattern(seed: int, region: int, length: int, offset: int = 0) -> Bytes:
    """What an end holds in a region from an offset on."""
    tile = _tile(seed, region)
    return np.resize(np.roll(tile, -offset), length)


@functools.cache
def _tile(seed: int, region: int) -> Bytes:
    return np.random.default_rng([seed, region]).integers(0, 256, 1_048_583, np.uint8)


def checksum(memory: "Bytes | DeviceBytes") -> int:
    found = 0
    for at in range(0, len(memory), CHUNK_BYTES):
        found = zlib.crc32(memory[at : at + CHUNK_BYTES].data, found)
    return found


def spans(*rows: tuple[int, int, int]) -> Spans:
    """(region, offset, length) each."""
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Spans(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy())


def one(length: int, local: int = 0, remote: int = 0, region: int = 0) -> Batch:
    """From or to region 0 of the near end; `region` is that of the peer."""
    return Batch(spans((0, local, length)), spans((region, remote, length)))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process has open."""

    files: int
    threads: int
    shared_memory: frozenset[str]  # files that have a name in /dev/shm

    def within(self, before: "Holdings") -> bool:
        """Says whether nothing came to what was there before. Of that, a thread may have been about to
        end."""
        fewer = self.files <= before.files and self.threads <= before.threads
        return fewer and self.shared_memory <= before.shared_memory


class DeviceBytes:
    """Memory of a device as its owner sees it. As of an array, pieces of it can be read and written, but what
    is read is a copy."""

    def __init__(self, copies: Copies, region: Region) -> None:
        self._copies, self._region = copies, region
        self._pinned = copies.pinned(CHUNK_BYTES)

    def __len__(self) -> int:
        return self._region.length_bytes

    def __getitem__(self, place: slice | int) -> Any:
        if isinstance(place, int):
            return self[place : place + 1][0]
        start, end, _ = place.indices(len(self))
        found = np.empty(max(0, end - start), np.uint8)
        for at, starts, lengths in self._chunks(start, end):
            size = int(lengths[0])
            self._copies.gather(starts, lengths, self._pinned[:size]).wait()
            found[at : at + size] = self._pinned[:size]
        return found

    def __setitem__(self, place: slice | int, content: Any) -> None:
        start, end, _ = (slice(place, place + 1) if isinstance(place, int) else place).indices(len(self))
        values = np.broadcast_to(np.asarray(content, np.uint8), end - start)
        for at, starts, lengths in self._chunks(start, end):
            size = int(lengths[0])
            self._pinned[:size] = values[at : at + size]
            self._copies.scatter(starts, lengths, self._pinned[:size]).wait()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Bytes:
        whole: Bytes = self[:]
        return whole

    def __eq__(self, other: object) -> Any:
        return self[:] == other

    def __ne__(self, other: object) -> Any:
        return self[:] != other

    __hash__ = None  # type: ignore[assignment]  # as an array's

    def _chunks(self, start: int, end: int) -> Iterator[tuple[int, Int64Array, Int64Array]]:
        for at in range(start, end, CHUNK_BYTES):
            yield at - start, np.array([self._region.address + at]), np.array([min(CHUNK_BYTES, end - at)])


class End:
    """A transport over registered memory of known bytes. place: near or far."""

    def __init__(self, kind: str, sizes: Sequence[int], seed: int = 0, place: str = "near") -> None:
        on_device = place in KINDS[kind].on_device
        self._device = KINDS[kind].device() if on_device else None
        self.transport = KINDS[kind].make(Staging(self._device) if self._device else None)
        self._sizes = sizes
        self._kept: list[Bytes | DeviceBytes] = []  # old memory: a peer may still read it
        self.register(seed)

    @property
    def local(self) -> Any:
        """Bytes, or DeviceBytes."""
        return self.memory[0]

    def register(self, seed: int) -> bytes:
        """Fresh memory, and the description of it."""
        self._seed = seed
        made = [self._made(pattern(seed, region, size)) for region, size in enumerate(self._sizes)]
        self.memory = [memory for _, memory in made]
        self._kept.extend(self.memory)
        self.transport.register([region for region, _ in made])
        return self.transport.describe()

    def _made(self, content: Bytes) -> "tuple[Region, Bytes | DeviceBytes]":
        """A region, and its bytes as their owner sees them."""
        if self._device is None:
            return Region(content.ctypes.data, content.nbytes), content
        region = self._device.allocate(content.nbytes)
        view: Bytes | DeviceBytes
        if isinstance(self._device, FakeDevice):
            view = self._device.view(region)
        else:
            view = DeviceBytes(self._device, region)
        view[:] = content
        return region, view

    def finish(self, transfer: Transfer, serving: bool = False) -> TransferStatus:
        """serving: peers read or write here meanwhile."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (status := self.transport.poll(transfer)).state is TransferState.RUNNING:
            assert time.monotonic() < deadline, "the transfer does not end"
            if serving:
                self.transport.progress()
            time.sleep(_POLL_SECONDS)
        return status

    def begin(self, transfer: Transfer) -> TransferStatus:
        """Waits for its first bytes at the start of blank local memory, or its end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (status := self.transport.poll(transfer)).state is TransferState.RUNNING:
            if (self.local[:8] != UNTOUCHED).any():
                break
            assert time.monotonic() < deadline, "the transfer does not begin"
        return status

    def attempt(self, operation: str, peer: PeerName, batch: Batch) -> TransferStatus:
        """A whole transfer, which may fail when it is submitted or later."""
        try:
            transfer = getattr(self.transport, operation)(peer, batch)
        except TransferError as error:
            return TransferStatus(TransferState.FAILED, error.message)
        return self.finish(transfer)

    def succeed(self, operation: str, peer: PeerName, batch: Batch) -> None:
        status = self.finish(getattr(self.transport, operation)(peer, batch))
        assert status.state is TransferState.DONE, status.reason

    def give_up(self, transfer: Transfer) -> None:
        """cancel, as often as it takes."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.transport.cancel(transfer)
            except TransferError:
                assert time.monotonic() < deadline, "the transfer cannot be cancelled"

    def serve_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not done():
            assert time.monotonic() < deadline, "the peer waits too long"
            self.transport.progress()
            time.sleep(_POLL_SECONDS)

    # -- what a test asks of an end in another process

    def connect(self, description: bytes) -> PeerName:
        return self.transport.connect(description)

    def repeat(self, operation: str, peer: PeerName, batch: Batch, times: int) -> list[str]:
        """The states of so many transfers, one after the other, while peers are served."""
        start = getattr(self.transport, operation)
        return [self.finish(start(peer, batch), serving=True).state.value for _ in range(times)]

    def checksum(self, region: int, offset: int, length: int) -> int:
        return checksum(self.memory[region][offset : offset + length])

    def fill(self, region: int, value: int) -> None:
        self.memory[region][:] = value

    def count(self, region: int, value: int) -> int:
        return int(np.count_nonzero(self.memory[region] == value))

    def restore(self, region: int) -> None:
        self.memory[region][:] = pattern(self._seed, region, self._sizes[region])

    def idle(self, seconds: float) -> dict[str, float]:
        """CPU seconds that each thread of this process uses while nobody calls anything."""
        before = _cpu_of_threads()
        time.sleep(seconds)
        return {name: used - before.get(name, 0.0) for name, used in _cpu_of_threads().items()}

    def mark_memory(self) -> int:
        """Forgets the peak of this process's resident memory; returns what is resident, in bytes."""
        Path("/proc/self/clear_refs").write_text("5")
        return self.peak_memory()

    def peak_memory(self) -> int:
        """Bytes, since `mark_memory`."""
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10

    def holdings(self) -> Holdings:
        return holdings()

    def close(self) -> None:
        self.transport.close()
        if self._device is not None:
            self.memory = [memory[:] for memory in self.memory]  # a GPU's does not outlive its copies
            self._device.close()


def _cpu_of_threads() -> dict[str, float]:
    """By number and, of those that Python has made, name. In seconds, as precise as the kernel counts."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = {}
    for number in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            counted = Path(f"/proc/self/task/{number}/schedstat").read_text()
            found[f"{number} {names.get(int(number), '')}"] = int(counted.split()[0]) / 1e9
    return found


def holdings() -> Holdings:
    """Of this process."""
    files = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            files.append(os.readlink(f"/proc/self/fd/{number}"))
    mapped = [line.split(maxsplit=5)[5] for line in _lines("/proc/self/maps") if "/dev/shm/" in line]
    shared = frozenset(path for path in [*files, *mapped] if path.startswith("/dev/shm/"))
    return Holdings(len(files), len(os.listdir("/proc/self/task")), frozenset(filter(os.path.exists, shared)))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


class Far:
    """An end in a process of its own, which serves its peers while it waits for what it is asked."""

    def __init__(self, kind: str, sizes: Sequence[int], seed: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["numpy", "torch"])  # what libraries import slowly
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, kind, tuple(sizes), seed, _wires()), daemon=True
        )
        self._process.start()
        theirs.close()
        self.description: bytes = self.answer()

    def ask(self, method: str, *arguments: object) -> Any:
        """Calls a method of the End. Errors: TransferError, as there."""
        self.tell(method, *arguments)
        return self.answer()

    def tell(self, method: str, *arguments: object) -> None:
        self._pipe.send((method, arguments))

    def answer(self) -> Any:
        assert self._pipe.poll(PATIENCE_SECONDS), "the far process does not answer"
        answer = self._pipe.recv()
        if isinstance(answer, TransferError):
            raise answer
        return answer

    def answered(self) -> bool:
        return self._pipe.poll()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Returns when the process is gone. Idempotent."""
        self._process.kill()
        self._process.join(PATIENCE_SECONDS)

    def stop(self) -> None:
        """The orderly end, unless the process has been killed."""
        self._pipe.close()
        self._process.join(PATIENCE_SECONDS)
        late = self._process.is_alive()
        self.kill()
        assert not late, "the far process does not end"

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def _wires() -> dict[str, str]:
    """The variables by which the ends know each other: the server that forks has those of its own start."""
    return {name: os.environ.get(name, "") for name in (SECRET_VARIABLE, CERTIFICATES_VARIABLE)}


def _serve(pipe: Connection, kind: str, sizes: Sequence[int], seed: int, wires: Mapping[str, str]) -> None:
    os.environ.update({**KINDS[kind].environment, **wires})
    end = End(kind, sizes, seed, "far")
    pipe.send(end.transport.describe())
    closed = False
    while True:
        if end.transport.needs_progress and not closed and not pipe.poll(_TICK_SECONDS):
            end.transport.progress()
            continue
        try:
            method, arguments = pipe.recv()
        except EOFError:
            break
        try:
            answer = getattr(end, method)(*arguments)
        except TransferError as error:
            answer = error
        closed = closed or method == "close"
        pipe.send(answer)
    end.close()
