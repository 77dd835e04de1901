"""GPU memory. Not run: no machine with two GPUs was at hand."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from llmserve.core.errors import TransportUnavailable
from llmserve.transfer.base import Region
from llmserve.transfer.collective.backend import SILENCE, identity
from llmserve.transfer.collective.rows import Copier, DeviceCopier

_ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_CLEAN_UP_ONLY = "2"


class Nccl:
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
        """Messages wait for the copies that were made before them on this stream."""
        stream = self._torch.cuda.Stream(self._device)
        with self._torch.cuda.stream(stream):
            try:
                yield
            finally:
                stream.synchronize()

    def close(self) -> None:
        """Nothing is shared."""


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
        """With a timeout it blocks this thread, looking every few milliseconds, not only the stream."""
        self.work.wait(SILENCE)


class _OnDevice:
    """Device memory, as torch takes it from others."""

    def __init__(self, region: Region) -> None:
        self.__cuda_array_interface__ = {
            "shape": (region.length_bytes,),
            "typestr": "|u1",
            "data": (region.address, False),
            "version": 3,
        }
