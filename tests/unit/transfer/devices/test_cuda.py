"""What of the copies of a GPU can be seen without one. tests/gpu/test_copies.py runs the kernel."""

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.devices.cuda import KERNEL_BELOW_BYTES, CudaCopies, CudaDriver, pin_by, prefers_kernel

SOURCES, TARGETS, LENGTHS = np.array([10, 20]), np.array([30, 40]), np.array([5, 6])


def test_a_machine_without_torch_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(TransportUnavailable, match="torch cannot be imported"):
        CudaCopies(0)


def test_a_gpu_that_is_not_there_is_told_so() -> None:
    with pytest.raises(TransportUnavailable, match="there is no GPU 99"):
        CudaCopies(99)


@pytest.mark.parametrize(
    ("lengths", "kernel"),
    [
        ([KERNEL_BELOW_BYTES - 1], True),
        ([KERNEL_BELOW_BYTES], False),
        ([1, 2 * KERNEL_BELOW_BYTES - 1], False),
        ([1, 2 * KERNEL_BELOW_BYTES - 2], True),
    ],
)
def test_small_pieces_are_copied_by_a_kernel(lengths: list[int], kernel: bool) -> None:
    assert prefers_kernel(np.array(lengths)) is kernel


def numbers(address: ctypes.c_void_p, count: int) -> list[int]:
    assert address.value is not None
    return list((ctypes.c_int64 * count).from_address(address.value))


def test_the_driver_copies_a_batch_in_one_call() -> None:
    calls: list[Any] = []

    def batch(*arguments: Any) -> int:
        targets, sources, lengths, count, attributes, first, attribute_count, _, stream = arguments
        calls.append([numbers(array, 2) for array in (targets, sources, lengths)])
        assert (count.value, attribute_count.value, stream.value) == (2, 1, 77)
        assert attributes._obj.source_order == 1
        assert first._obj.value == 0
        return 0

    library = SimpleNamespace(cuMemcpyBatchAsync=batch, cuMemcpyAsync=None)
    CudaDriver(library).copy(SOURCES, TARGETS, LENGTHS, 77)
    assert calls == [[[30, 40], [10, 20], [5, 6]]]


def test_an_older_driver_copies_piece_by_piece() -> None:
    calls: list[list[int]] = []

    def one(*arguments: Any) -> int:
        calls.append([argument.value for argument in arguments])
        return 0

    CudaDriver(SimpleNamespace(cuMemcpyAsync=one)).copy(SOURCES, TARGETS, LENGTHS, 77)
    assert calls == [[30, 10, 5, 77], [40, 20, 6, 77]]


@pytest.mark.parametrize("name", ["cuMemcpyAsync", "cuMemcpyBatchAsync"])
def test_an_error_of_the_driver_has_its_number(name: str) -> None:
    library = SimpleNamespace(**{"cuMemcpyAsync": None, name: lambda *_: 700})
    with pytest.raises(TransferError, match="error 700"):
        CudaDriver(library).copy(SOURCES, TARGETS, LENGTHS, 77)


def test_memory_is_registered_and_unregistered() -> None:
    calls: list[tuple[Any, ...]] = []

    def called(*arguments: Any) -> int:
        calls.append(arguments)
        return 0

    runtime = SimpleNamespace(cudaHostRegister=called, cudaHostUnregister=called)
    memory = np.empty(100, np.uint8)
    unpin = pin_by(runtime, memory[20:])
    assert calls == [(memory.ctypes.data + 20, 80, 1)]
    unpin()
    assert calls[1:] == [(memory.ctypes.data + 20,)]


def test_memory_that_cannot_be_registered_is_told_so() -> None:
    runtime = SimpleNamespace(cudaHostRegister=lambda *_: 2, cudaHostUnregister=lambda *_: 713)
    memory = np.empty(100, np.uint8)
    with pytest.raises(TransferError, match="cannot be pinned: error 2"):
        pin_by(runtime, memory)
    runtime.cudaHostRegister = lambda *_: 0
    with pytest.raises(TransferError, match="stays pinned: error 713"):
        pin_by(runtime, memory)()
