"""Two processes whose memory is that of a device: the end in this process, and the peer that it talks to."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.gpu.steps import MIB, StepSetting, StepSkipped, device_tensor
from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import Batch, PeerName, Region, Spans, TransferState, Transport
from llmserve.transfer.devices import Bytes, Copies, Mark, Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.select import makers

_PATIENCE_SECONDS = 20.0
_TICK_SECONDS = 0.0005
_KERNEL_SECONDS = 0.05
_CHUNK_BYTES = 4 * MIB


class DeviceEnd:
    """One transport over one region of the device. kind: of the transport."""

    def __init__(self, setting: StepSetting, kind: str, size_bytes: int, *, on_host: bool = False) -> None:
        """on_host: the region is host memory all the same. Errors: StepSkipped when this machine lacks the
        transport."""
        self.copies = setting.copies_of_nixl() if kind == "nixl" else setting.copies()
        self.transport = _made(kind, self.copies)
        self._host: Bytes | None = None
        self.region = self._allocate(size_bytes, on_host)
        self.transport.register([self.region])
        self._chunk = self.copies.pinned(_CHUNK_BYTES)
        self._agent: Any = None

    def _allocate(self, size_bytes: int, on_host: bool) -> Region:
        if not on_host:
            return self.copies.allocate(size_bytes)
        self._host = np.zeros(size_bytes, np.uint8)
        return Region(self._host.ctypes.data, size_bytes)

    # -- the bytes

    def fill(self, value: int) -> None:
        if self._host is not None:
            self._host[:] = value
            return
        self._chunk[:] = value
        for start, length in self._chunks():
            self.copies.scatter(start, length, self._chunk[: int(length[0])]).wait()

    def count(self, value: int, size_bytes: int = -1) -> int:
        """Returns how many of the first bytes of the region have this value. -1: of all bytes."""
        if self._host is not None:
            return int(np.count_nonzero(self._host[: self._limit(size_bytes)] == value))
        found = 0
        for start, length in self._chunks(size_bytes):
            packed = self._chunk[: int(length[0])]
            self.copies.gather(start, length, packed).wait()
            found += int(np.count_nonzero(packed == value))
        return found

    def _limit(self, size_bytes: int) -> int:
        return self.region.length_bytes if size_bytes < 0 else size_bytes

    def _chunks(self, size_bytes: int = -1) -> Iterator[tuple[Any, Any]]:
        limit = self._limit(size_bytes)
        for at in range(0, limit, _CHUNK_BYTES):
            yield np.array([self.region.address + at]), np.array([min(_CHUNK_BYTES, limit - at)])

    def compute(self, value: int, wait: bool) -> None:
        """Launches a kernel that writes the value into all bytes, but only after 50 ms. wait: until its mark
        is reached, as before a grant."""
        mark = launch_late(self.copies, self.region, value)
        if wait:
            mark.wait()

    # -- transfers

    def connect(self, description: bytes) -> PeerName:
        return self.transport.connect(description)

    def move(
        self, operation: str, peer: PeerName, batch: Batch, patience_seconds: float = _PATIENCE_SECONDS
    ) -> str:
        """Returns why it failed; an empty text when it is done."""
        try:
            start = self.transport.read if operation == "read" else self.transport.write
            transfer = start(peer, batch)
            deadline = time.monotonic() + patience_seconds
            while (status := self.transport.poll(transfer)).state is TransferState.RUNNING:
                if time.monotonic() > deadline:
                    return f"it did not end within {patience_seconds:g} s"
            return status.reason
        except TransferError as error:
            return error.message

    def must_move(self, operation: str, peer: PeerName, batch: Batch) -> None:
        """Errors: TransferError."""
        if failure := self.move(operation, peer, batch):
            raise TransferError(failure)

    # -- a bare agent of NIXL over the same region, the floor

    def bare_agent(self) -> Any:
        """Makes it at the first call."""
        if self._agent is None:
            from nixl._api import nixl_agent, nixl_agent_config

            self.copies.enter()
            self._agent = nixl_agent(
                f"bare-{multiprocessing.current_process().pid}",
                nixl_agent_config(False, backends=["UCX"]),
            )
            row = (self.region.address, self.region.length_bytes, self.region.memory.device or 0, "")
            self._agent.register_memory([row], memory_type(self.region))
        return self._agent

    def bare_metadata(self) -> tuple[str, bytes, int]:
        agent = self.bare_agent()
        return agent.name, agent.get_agent_metadata(), self.region.address

    def register_anew(self) -> bytes:
        self.transport.register([self.region])
        return self.transport.describe()

    def progress(self) -> None:
        if self.transport.needs_progress:
            self.transport.progress()
        if self._agent is not None:
            self._agent.get_new_notifs()

    def close(self) -> None:
        self._agent = None
        self.transport.close()
        self.copies.close()


def memory_type(region: Region) -> str:
    return "DRAM" if region.memory.on_host else "VRAM"


def launch_late(copies: Copies, region: Region, value: int) -> Mark:
    """Launches a kernel that writes the value into all bytes after some 50 ms; returns the mark behind it."""
    if isinstance(copies, FakeDevice):

        def kernel() -> None:
            time.sleep(_KERNEL_SECONDS)
            copies.view(region)[:] = value

        copies.launch(kernel)
        return copies.mark()
    import torch

    torch.cuda._sleep(int(_KERNEL_SECONDS * 2e9))  # cycles; the clock of an H200 is at most 1.98 GHz
    device_tensor(region).fill_(value)
    return copies.mark()


def _made(kind: str, copies: Copies) -> Transport:
    try:
        return makers("127.0.0.1", Staging(copies))[kind]()
    except TransportUnavailable as error:
        raise StepSkipped(error.message) from error


def spans(piece_bytes: int, offsets: Any) -> Spans:
    count = len(offsets)
    return Spans(
        np.zeros(count, np.int64), np.asarray(offsets, np.int64), np.full(count, piece_bytes, np.int64)
    )


def batch(piece_bytes: int, count: int = 1, room_bytes: int = 0) -> Batch:
    """Pieces that lie in no order within `room_bytes` of either region; one piece begins at 0."""
    if count == 1:
        return Batch(spans(piece_bytes, [0]), spans(piece_bytes, [0]))
    random, slots = np.random.default_rng(7), room_bytes // piece_bytes
    near, far = (random.permutation(slots)[:count] * piece_bytes for _ in range(2))
    return Batch(spans(piece_bytes, near), spans(piece_bytes, far))


class PeerProcess:
    """A DeviceEnd in a process of its own, which serves its peers while it waits for what it is asked."""

    def __init__(self, setting: StepSetting, kind: str, size_bytes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setting, kind, size_bytes), daemon=True)
        self._process.start()
        theirs.close()
        self.description: bytes = self.answer(60.0)

    def ask(self, method: str, *arguments: object) -> Any:
        self.tell(method, *arguments)
        return self.answer()

    def tell(self, method: str, *arguments: object) -> None:
        self._pipe.send((method, arguments))

    def answer(self, seconds: float = 30.0) -> Any:
        """Errors: TransferError, as there; EOFError when the process is gone."""
        if not self._pipe.poll(seconds):
            raise TransferError("the peer does not answer")
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.join(_PATIENCE_SECONDS)

    def close(self) -> None:
        """Lets it end in order, for at most some seconds. Idempotent."""
        self._pipe.close()
        self._process.join(5.0)
        self.kill()


def _serve(pipe: Connection, setting: StepSetting, kind: str, size_bytes: int) -> None:
    try:
        end = DeviceEnd(setting, kind, size_bytes)
    except Exception as error:
        pipe.send(TransferError(f"{type(error).__name__}: {error}"))
        return
    pipe.send(end.transport.describe())
    while True:
        if not pipe.poll(_TICK_SECONDS):
            end.progress()
            continue
        try:
            method, arguments = pipe.recv()
        except EOFError:
            break
        try:
            answer = getattr(end, method)(*arguments)
        except Exception as error:
            answer = TransferError(f"{type(error).__name__}: {error}")
        pipe.send(answer)
    end.close()


@contextmanager
def pair(
    setting: StepSetting, kind: str, size_bytes: int, *, near_on_host: bool = False
) -> Iterator[tuple[DeviceEnd, PeerProcess, PeerName]]:
    """This process's end, the other process, and its name here."""
    near = DeviceEnd(setting, kind, size_bytes, on_host=near_on_host)
    far = PeerProcess(setting, kind, size_bytes)
    try:
        yield near, far, near.connect(far.description)
    finally:
        near.transport.close()
        far.close()
        near.copies.close()
