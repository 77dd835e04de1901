"""What the fake device is for: it shows who looks where only a GPU can, and who looks too early."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import HOST, Int64Array, Memory, Region, Spans
from llmserve.transfer.devices import Bytes, HostCopies, RegionCopies
from llmserve.transfer.devices.fake import FakeDevice, LateMark
from llmserve.transfer.shm.memory import ProcessMemory

SIZE = 64 << 10
LATE = 0.05


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    made = FakeDevice(lateness_seconds=LATE)
    yield made
    made.close()


def whole(region: Region) -> tuple[Int64Array, Int64Array]:
    return np.array([region.address]), np.array([region.length_bytes])


def test_who_dereferences_an_address_dies() -> None:
    script = (
        "import ctypes; from llmserve.transfer.devices.fake import FakeDevice; device = FakeDevice();"
        "region = device.allocate(4096); print(device.view(region)[0], flush=True);"
        "ctypes.c_ubyte.from_address(region.address).value"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=50, check=False)
    assert done.stdout == b"0\n"
    assert done.returncode == -11


def test_the_kernel_does_not_read_it_either(device: FakeDevice) -> None:
    with pytest.raises(TransferError, match="does not have that memory"):
        ProcessMemory().fetch(os.getpid(), device.allocate(SIZE).address, 8)


def test_what_is_behind_a_kernel_that_failed_has_failed() -> None:
    device = FakeDevice(lateness_seconds=0.0)

    def fail() -> None:
        raise TransferError("an illegal memory access")

    device.launch(fail)
    for mark in (device.mark(), device.mark()):
        with pytest.raises(TransferError, match="an illegal memory access"):
            mark.wait()
    device.close()


def test_copies_end_late(device: FakeDevice) -> None:
    region, packed = device.allocate(SIZE), device.pinned(SIZE)
    device.view(region)[:], packed[:] = 7, 0
    mark = device.gather(*whole(region), packed)
    assert not mark.reached()
    assert not packed.any()
    mark.wait()
    assert (packed == 7).all()
    assert device.copied_bytes == SIZE


def test_who_does_not_wait_for_a_mark_sees_old_bytes(device: FakeDevice) -> None:
    """The kernel and the copy are on different streams, as on a GPU."""
    region, packed = device.allocate(SIZE), device.pinned(SIZE)
    computed: Bytes = device.view(region)

    def kernel() -> None:
        computed[:] = 9

    device.launch(kernel)
    mark = device.mark()
    assert not mark.reached()
    assert not computed.any()
    mark.wait()
    device.gather(*whole(region), packed).wait()
    assert (packed == 9).all()


def test_a_copy_fails_when_it_is_told_to(device: FakeDevice) -> None:
    region, packed = device.allocate(SIZE), device.pinned(SIZE)
    device.fail_copy(after=1)
    marks = [device.gather(*whole(region), packed) for _ in range(3)]
    marks[0].wait()
    with pytest.raises(TransferError, match="a copy of memory of GPU 0 failed"):
        marks[1].wait()
    with pytest.raises(TransferError):
        marks[1].reached()
    marks[2].wait()


def test_an_address_of_the_host_is_refused(device: FakeDevice) -> None:
    device.allocate(SIZE)
    packed = device.pinned(SIZE)
    with pytest.raises(TransferError, match="outside the memory of GPU 0"):
        device.gather(np.array([packed.ctypes.data]), np.array([1]), packed)


def test_pinned_memory_ends(device: FakeDevice) -> None:
    few = FakeDevice(pinned_bytes=SIZE)
    taken = few.pinned(SIZE)
    for take in (lambda: few.pinned(1), lambda: few.pin(np.empty(1, np.uint8))):
        with pytest.raises(TransferError, match="no pinned memory"):
            take()
    del taken
    assert len(few.pinned(SIZE)) == SIZE, "memory that is gone is not pinned"


def test_memory_is_pinned_once(device: FakeDevice) -> None:
    memory = np.empty(SIZE, np.uint8)
    unpin = device.pin(memory[10:])
    with pytest.raises(TransferError, match="pinned already"):
        device.pin(memory[:11])
    unpin()
    device.pin(memory)


def test_memory_of_the_host_must_be_pinned_from_the_start_to_the_end_of_a_copy(device: FakeDevice) -> None:
    region, memory = device.allocate(SIZE), np.empty(SIZE, np.uint8)
    unpin = device.pin(memory[1:])
    for copy in (device.gather, device.scatter):
        with pytest.raises(TransferError, match="not pinned"):
            copy(*whole(region), memory)
    part = np.array([region.address]), np.array([SIZE - 1])
    device.gather(*part, memory[1:]).wait()
    mark = device.gather(*part, memory[1:])
    unpin()
    with pytest.raises(TransferError, match="not pinned"):
        mark.wait()


# -- regions of both kinds


def test_spans_of_both_memories_are_packed_in_their_order(device: FakeDevice) -> None:
    host = np.arange(SIZE, dtype=np.uint8)
    there = device.allocate(SIZE)
    device.view(there)[:] = 200
    memory = RegionCopies([Region(host.ctypes.data, SIZE), there], device)
    spans = Spans(np.array([0, 1, 1, 0, 1]), np.array([3, 0, 9, 8, 5]), np.array([2, 3, 1, 4, 0]))
    packed = device.pinned(10)
    memory.gather(spans, packed).wait()
    assert packed.tolist() == [3, 4, 200, 200, 200, 200, 8, 9, 10, 11]
    packed[:] = range(10)
    memory.scatter(spans, packed).wait()
    assert (host[3:5].tolist(), host[8:12].tolist()) == ([0, 1], [6, 7, 8, 9])
    assert device.view(there)[[0, 1, 2, 9]].tolist() == [2, 3, 4, 5]


def test_the_mark_is_that_of_the_device(device: FakeDevice) -> None:
    """Bytes of the host that come after those of the device do not hide that these are under way."""
    host, there = np.zeros(1, np.uint8), device.allocate(1)
    memory = RegionCopies([there, Region(host.ctypes.data, 1)], device)
    spans = Spans(np.array([0, 1]), np.array([0, 0]), np.array([1, 1]))
    mark = memory.gather(spans, device.pinned(2))
    assert not mark.reached()
    mark.wait()


@pytest.mark.parametrize("copies", [HostCopies(), FakeDevice(1)])
def test_memory_of_another_device_is_refused(copies: HostCopies | FakeDevice) -> None:
    with pytest.raises(TransferError, match="memory of GPU 0 was registered"):
        RegionCopies([Region(0, 1, HOST), Region(0, 1, Memory(0))], copies)


def test_a_copy_that_fails_while_its_mark_is_asked_has_not_succeeded() -> None:
    class EndsNow(threading.Event):
        def is_set(self) -> bool:
            mark.failure = "the copy failed"
            return True

    mark = LateMark(ended=EndsNow())
    with pytest.raises(TransferError, match="the copy failed"):
        mark.reached()
