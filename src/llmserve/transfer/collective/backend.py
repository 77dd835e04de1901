"""The differences between gloo and NCCL: groups, devices and synchronisation."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import numpy as np

from llmserve.core.errors import TransportUnavailable
from llmserve.transfer.base import HOST, Memory, Region
from llmserve.transfer.collective.rows import Copier, DeviceCopier, HostCopier

SILENCE = timedelta(seconds=10)  # a peer counts as dead when a message takes longer


class PendingMessage(Protocol):
    """A tensor in flight. Keep it and the tensor until `wait` has returned."""

    def wait(self) -> None:
        """Waits at most SILENCE. Errors: RuntimeError, also when the group was cut or the peer is gone."""


class RankPair(Protocol):
    """A process group of two ranks. Messages arrive in the order of sending, and the other end receives as
    many bytes as are sent. Errors: RuntimeError."""

    def send(self, tensor: Any, acknowledged: bool) -> PendingMessage:
        """acknowledged: the same at both ends. Without it, wait for the message only once the other end is
        known to have it."""

    def receive(self, tensor: Any, acknowledged: bool) -> PendingMessage: ...

    def cut(self) -> None:
        """Ends all messages with an error, from any thread. When this returns no tensor is touched any more.
        Idempotent."""


class Backend(Protocol):
    """The carriers of a transport share one backend. Tensors and stores are torch's."""

    name: str
    identity: str  # must be equal at both ends
    memory: Memory  # the only one that it reaches
    copier: Copier

    def map(self, region: Region) -> Any:
        """Returns a uint8 tensor over registered memory."""

    def staging(self, size_bytes: int) -> Any:
        """Returns an uninitialised uint8 tensor on the same device."""

    def pair(self, store: Any, rank: int) -> RankPair:
        """Makes a pair; both ends call this at the same time. Errors: RuntimeError, and those of the
        store."""

    def stream(self) -> AbstractContextManager[None]:
        """Copies that start inside have ended when it is left."""

    def close(self) -> None:
        """Idempotent."""


def identity(name: str, torch: Any) -> str:
    """Returns what both ends must share: backends of different releases may not understand each other."""
    return f"{name} of torch {torch.__version__.split('+')[0]}"


_CONNECT = timedelta(seconds=2)
_AT_ONCE = timedelta(milliseconds=1)
_DATA, _ACK, _NEVER = 0, 1, 2  # tags


class Gloo:
    """Host memory. Each pair has a device of its own, which listens, and a thread that wakes a hundred times
    a second: 0.2% of a core.

    gloo keeps each connection of a stranger for as long as its device lives. So there is none without a
    pair."""

    name = "gloo"
    memory = HOST

    def __init__(self, host: str, torch: Any) -> None:
        """Errors: TransportUnavailable."""
        distributed = torch.distributed
        if not distributed.is_gloo_available():
            raise TransportUnavailable("gloo: this build of torch has no gloo")
        self._torch, self._group_class = torch, distributed.ProcessGroupGloo
        self.identity = identity(self.name, torch)
        self.copier: Copier = HostCopier()
        self._host = host
        try:
            self._make_device()  # the only way to find out whether it can use the host
        except RuntimeError as error:
            raise TransportUnavailable(f"gloo: cannot use {host}: {error}") from error

    def map(self, region: Region) -> Any:
        array = (ctypes.c_ubyte * region.length_bytes).from_address(region.address)
        return self._torch.from_numpy(np.ctypeslib.as_array(array))

    def staging(self, size_bytes: int) -> Any:
        return self._torch.empty(size_bytes, dtype=self._torch.uint8)

    def pair(self, store: Any, rank: int) -> "GlooPair":
        options = self._group_class._Options()
        options._devices = [self._make_device()]
        options._timeout = _CONNECT
        options._threads = 1  # for collectives, which are not used here
        return GlooPair(self._group_class(store, rank, 2, options), 1 - rank, self.staging(1))

    def stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _make_device(self) -> Any:
        return self._group_class.create_device(hostname=self._host, lazy_init=False)

    def close(self) -> None:
        """Does nothing: the carriers share nothing."""


class GlooPair:
    """When a connection breaks, gloo (seen with torch 2.13) wakes all waits except the one for the message
    that is just being moved: that one lasts until its timeout. So no wait is for data. The receiver waits for
    a byte that follows the data, and the sender for a byte that comes back, or for another sign that
    everything has arrived. Neither byte is moved while the data is. The wait for the data itself then returns
    at once."""

    def __init__(self, group: Any, other: int, byte: Any) -> None:
        self._group = group
        self._other = other
        self._byte = byte  # its value has no meaning, so one serves for all

    def send(self, tensor: Any, acknowledged: bool) -> "_Sent":
        ack = [self._group.recv([self._byte], self._other, _ACK)] if acknowledged else []
        data = self._group.send([tensor], self._other, _DATA)
        return _Sent([*ack, data, self._group.send([self._byte], self._other, _DATA)])

    def receive(self, tensor: Any, acknowledged: bool) -> "_Received":
        data = self._group.recv([tensor], self._other, _DATA)
        tail = self._group.recv([self._byte], self._other, _DATA)
        return _Received([tail, data], self if acknowledged else None)

    def acknowledge(self) -> None:
        self._group.send([self._byte], self._other, _ACK).wait(SILENCE)

    def cut(self) -> None:
        """Closes the group with a receive that times out: the abort of gloo's groups does nothing."""
        with suppress(RuntimeError):
            self._group.recv([self._byte], self._other, _NEVER).wait(_AT_ONCE)


@dataclass(frozen=True, slots=True)
class _Sent:
    works: list[Any]

    def wait(self) -> None:
        for work in self.works:
            work.wait(SILENCE)


@dataclass(frozen=True, slots=True)
class _Received:
    works: list[Any]
    pair: GlooPair | None  # None: the message is not acknowledged

    def wait(self) -> None:
        for work in self.works:
            work.wait(SILENCE)
        if self.pair:
            self.pair.acknowledge()


_ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_CLEAN_UP_ONLY = "2"


class Nccl:
    """GPU memory. It was not run: no machine with two GPUs was at hand."""

    name = "nccl"

    def __init__(self, gpu: int, torch: Any) -> None:
        """Errors: TransportUnavailable."""
        distributed = torch.distributed
        if not distributed.is_nccl_available():
            raise TransportUnavailable("nccl: this build of torch has no NCCL")
        if not torch.cuda.is_available() or gpu >= torch.cuda.device_count():
            raise TransportUnavailable(f"nccl: there is no GPU {gpu}")
        if os.environ.get(_ERROR_HANDLING) != _CLEAN_UP_ONLY:
            raise TransportUnavailable(
                f"nccl: {_ERROR_HANDLING} must be {_CLEAN_UP_ONLY} in this process: "
                "as it is, torch would end the process when a peer dies"
            )
        self._torch, self._group_class = torch, distributed.ProcessGroupNCCL
        self._device = torch.device("cuda", gpu)
        self.memory = Memory(gpu)
        self.identity = identity(self.name, torch)
        self.copier: Copier = DeviceCopier(torch)

    def map(self, region: Region) -> Any:
        return self._torch.as_tensor(_OnDevice(region), device=self._device)

    def staging(self, size_bytes: int) -> Any:
        return self._torch.empty(size_bytes, dtype=self._torch.uint8, device=self._device)

    def pair(self, store: Any, rank: int) -> "NcclPair":
        return NcclPair(self._group_class(store, rank, 2, self._group_class.Options()), 1 - rank)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Messages wait for the copies that started before them on this stream."""
        stream = self._torch.cuda.Stream(self._device)
        with self._torch.cuda.stream(stream):
            try:
                yield
            finally:
                stream.synchronize()

    def close(self) -> None:
        """Does nothing: the carriers share nothing."""


class NcclPair:
    def __init__(self, group: Any, other: int) -> None:
        self._group = group
        self._other = other

    def send(self, tensor: Any, acknowledged: bool) -> "_Posted":
        return _Posted(self._group.send([tensor], self._other, 0))

    def receive(self, tensor: Any, acknowledged: bool) -> "_Posted":
        return _Posted(self._group.recv([tensor], self._other, 0))

    def cut(self) -> None:
        with suppress(RuntimeError):
            self._group.abort()


@dataclass(frozen=True, slots=True)
class _Posted:
    work: Any

    def wait(self) -> None:
        """A timeout makes torch block this thread, not only the stream, and look every few milliseconds."""
        self.work.wait(SILENCE)


class _OnDevice:
    """Device memory in the form in which torch accepts it."""

    def __init__(self, region: Region) -> None:
        self.__cuda_array_interface__ = {
            "shape": (region.length_bytes,),
            "typestr": "|u1",
            "data": (region.address, False),
            "version": 3,
        }
