"""Copies of an NVIDIA GPU, on two streams of their own, one for each direction.

Pieces of at least 28 KiB on average are copied by the copy engines, in one call of cuMemcpyBatchAsync (CUDA
12.8 and later; before that in a call for each piece). Smaller ones are copied by a kernel, which reads and
writes pinned host memory itself: vLLM measured where the one becomes faster than the other
(v1/kv_offload/cpu/gpu_worker.py).

It was not run on a GPU. torch and Triton are imported only when they are needed.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import Int64Array, Memory, Region
from llmserve.transfer.devices.copies import REACHED, Bytes, Mark, places

KERNEL_BELOW_BYTES = 28 << 10
_KERNEL_ALIGNMENT = 8
_STREAM_ORDER = 1  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
_PORTABLE = 1  # cudaHostRegisterPortable: for all contexts of the process


class CudaCopies:
    """ordinal: the GPU, as this process counts them."""

    def __init__(self, ordinal: int) -> None:
        """Errors: TransportUnavailable."""
        try:
            import torch
        except (ImportError, OSError) as error:
            raise TransportUnavailable(f"cuda: torch cannot be imported: {error}") from error
        if not torch.cuda.is_available() or ordinal >= torch.cuda.device_count():
            raise TransportUnavailable(f"cuda: there is no GPU {ordinal}")
        self.memory = Memory(ordinal)
        self._torch = torch
        self._device = torch.device("cuda", ordinal)
        try:
            self._driver = CudaDriver(ctypes.CDLL("libcuda.so.1"))
        except OSError as error:
            raise TransportUnavailable(f"cuda: no driver of NVIDIA: {error}") from error
        with _mapped_errors():
            self._outgoing = torch.cuda.Stream(self._device)
            self._incoming = torch.cuda.Stream(self._device)
        self._allocated: list[Any] = []

    def enter(self) -> None:
        with _mapped_errors():
            self._torch.cuda.set_device(self._device)

    def allocate(self, size_bytes: int) -> Region:
        with _mapped_errors():
            tensor = self._torch.empty(size_bytes, dtype=self._torch.uint8, device=self._device)
        self.mark().wait()  # kernels that were launched before may still use it: torch keeps freed memory
        self._allocated.append(tensor)
        return Region(tensor.data_ptr(), size_bytes, self.memory)

    def pinned(self, size_bytes: int) -> Bytes:
        with _mapped_errors():
            tensor = self._torch.empty(size_bytes, dtype=self._torch.uint8, pin_memory=True)
        array: Bytes = tensor.numpy()
        return array

    def pin(self, memory: Bytes) -> Callable[[], None]:
        self.enter()
        with _mapped_errors():
            return pin_by(self._torch.cuda.cudart(), memory)

    def gather(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        return self._copy(self._outgoing, starts, places(lengths, packed), lengths)

    def scatter(self, starts: Int64Array, lengths: Int64Array, packed: Bytes) -> Mark:
        return self._copy(self._incoming, places(lengths, packed), starts, lengths)

    def mark(self) -> Mark:
        with _mapped_errors():
            return self._event(self._torch.cuda.current_stream(self._device))

    def close(self) -> None:
        self._allocated.clear()

    # -- inside

    def _copy(self, stream: Any, sources: Int64Array, targets: Int64Array, lengths: Int64Array) -> Mark:
        if not len(lengths):
            return REACHED
        self.enter()  # a thread that nobody has set a device for has no context, which the driver asks for
        with _mapped_errors(), self._torch.cuda.stream(stream):
            if prefers_kernel(lengths):
                self._run_kernel(sources, targets, lengths)
            else:
                self._driver.copy(sources, targets, lengths, stream.cuda_stream)
            return self._event(stream)

    def _run_kernel(self, sources: Int64Array, targets: Int64Array, lengths: Int64Array) -> None:
        from llmserve.transfer.devices.kernels import copy_pieces

        table = np.stack((sources, targets, lengths))
        aligned = not np.bitwise_or.reduce(table, axis=None) % _KERNEL_ALIGNMENT
        on_device = self._torch.from_numpy(table).pin_memory().to(self._device, non_blocking=True)
        copy_pieces(on_device, int(lengths.max()), aligned=aligned)

    def _event(self, stream: Any) -> Mark:
        event = self._torch.cuda.Event()
        event.record(stream)
        return _CudaMark(event)


def prefers_kernel(lengths: Int64Array) -> bool:
    """Whether a kernel copies these pieces faster than the copy engines. lengths: of at least one piece."""
    return int(lengths.sum()) < KERNEL_BELOW_BYTES * len(lengths)


class _CudaMark:
    def __init__(self, event: Any) -> None:
        self._event = event

    def reached(self) -> bool:
        with _mapped_errors():
            return bool(self._event.query())

    def wait(self) -> None:
        with _mapped_errors():
            self._event.synchronize()


@contextmanager
def _mapped_errors() -> Iterator[None]:
    """Maps torch's errors, which are RuntimeErrors, to TransferError with their first line."""
    try:
        yield
    except RuntimeError as error:
        raise TransferError(f"cuda: {str(error).partition(chr(10))[0]}") from error


def pin_by(runtime: Any, memory: Bytes) -> Callable[[], None]:
    """See Copies.pin. runtime: torch's cudart."""
    address = memory.ctypes.data
    if code := int(runtime.cudaHostRegister(address, memory.nbytes, _PORTABLE)):
        raise TransferError(f"cuda: host memory cannot be pinned: error {code} of cudaHostRegister")

    def unpin() -> None:
        if code := int(runtime.cudaHostUnregister(address)):
            raise TransferError(f"cuda: host memory stays pinned: error {code} of cudaHostUnregister")

    return unpin


class _CopyAttributes(ctypes.Structure):
    """struct CUmemcpyAttributes."""

    _fields_ = (
        ("source_order", ctypes.c_int),
        ("source_place", ctypes.c_int * 2),
        ("target_place", ctypes.c_int * 2),
        ("flags", ctypes.c_uint),
    )


class CudaDriver:
    """Copies by the copy engines. library: libcuda."""

    def __init__(self, library: Any) -> None:
        # The symbol without a version has the parameter failIdx, as CUDA 12.8 declares it.
        self._copy_batch: Any = getattr(library, "cuMemcpyBatchAsync", None)
        self._copy_one = library.cuMemcpyAsync

    def copy(self, sources: Int64Array, targets: Int64Array, lengths: Int64Array, stream: int) -> None:
        """Starts the copies, whose arrays the driver has read when this returns. stream: not the default one.
        Errors: TransferError."""
        if self._copy_batch is not None:
            self._check(self._start_batch(sources, targets, lengths, stream))
            return
        rows = zip(targets.tolist(), sources.tolist(), lengths.tolist(), strict=True)
        for target, source, length in rows:
            self._check(
                self._copy_one(
                    ctypes.c_uint64(target),
                    ctypes.c_uint64(source),
                    ctypes.c_size_t(length),
                    ctypes.c_void_p(stream),
                )
            )

    def _start_batch(self, sources: Int64Array, targets: Int64Array, lengths: Int64Array, stream: int) -> int:
        attributes = _CopyAttributes(source_order=_STREAM_ORDER)
        first, failed = ctypes.c_size_t(0), ctypes.c_size_t(0)
        arrays = [np.ascontiguousarray(column, np.int64) for column in (targets, sources, lengths)]
        code: int = self._copy_batch(
            *(ctypes.c_void_p(array.ctypes.data) for array in arrays),
            ctypes.c_size_t(len(lengths)),
            ctypes.byref(attributes),
            ctypes.byref(first),
            ctypes.c_size_t(1),
            ctypes.byref(failed),
            ctypes.c_void_p(stream),
        )
        return code

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise TransferError(f"cuda: a copy could not be started: error {code} of the driver")
