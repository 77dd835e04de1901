"""Host memory."""

import ctypes
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from llmserve.core.errors import TransportUnavailable
from llmserve.transfer.base import Region
from llmserve.transfer.collective.backend import SILENCE, identity
from llmserve.transfer.collective.rows import Copier, HostCopier

_CONNECT = timedelta(seconds=2)
_AT_ONCE = timedelta(milliseconds=1)
_DATA, _ACK, _NEVER = 0, 1, 2  # tags


class Gloo:
    """Its one thread wakes up a hundred times a second, also while nothing is connected: 0.2% of a core."""

    name = "gloo"

    def __init__(self, host: str, torch: Any) -> None:
        """Errors: TransportUnavailable."""
        distributed = torch.distributed
        if not distributed.is_gloo_available():
            raise TransportUnavailable("gloo: this build of torch has no gloo")
        self._torch, self._group_class = torch, distributed.ProcessGroupGloo
        self.identity = identity(self.name, torch)
        self.copier: Copier = HostCopier()
        try:
            device = self._group_class.create_device(hostname=host, lazy_init=False)
        except RuntimeError as error:
            raise TransportUnavailable(f"gloo: cannot use {host}: {error}") from error
        self._devices = [device]

    def map(self, region: Region) -> Any:
        array = (ctypes.c_ubyte * region.length_bytes).from_address(region.address)
        return self._torch.from_numpy(np.ctypeslib.as_array(array))

    def staging(self, size_bytes: int) -> Any:
        return self._torch.empty(size_bytes, dtype=self._torch.uint8)

    def pair(self, store: Any, rank: int) -> "GlooPair":
        options = self._group_class._Options()
        options._devices = self._devices
        options._timeout = _CONNECT
        options._threads = 1  # it runs collectives, of which there are none here
        return GlooPair(self._group_class(store, rank, 2, options), 1 - rank, self.staging(1))

    def stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self._devices = []


class GlooPair:
    """When a connection breaks, gloo (seen with torch 2.13) tells all who wait, except for the message
    that is just on the wire: that wait lasts until its timeout. So nobody here waits for data. The
    receiver waits for a byte that follows it, the sender for one that comes back (or for whatever else
    tells it that all has arrived): neither is on the wire while the data is. Then waiting for the data
    itself is over at once."""

    def __init__(self, group: Any, other: int, byte: Any) -> None:
        self._group = group
        self._other = other
        self._byte = byte  # its value means nothing: one is enough for all

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
        """A group of gloo has no abort that does something; a receive that times out closes it."""
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
    pair: GlooPair | None  # where it is to be acknowledged

    def wait(self) -> None:
        for work in self.works:
            work.wait(SILENCE)
        if self.pair:
            self.pair.acknowledge()
