"""Transports that stage, from device to device in one process, when copies fail and pinned memory ends."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Region, Spans, TransferState, TransferStatus, Transport
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.engine import SharedTransfers, TransferEngine
from llmserve.transfer.faults import FaultPlan
from llmserve.transfer.faulty import FaultyTransport
from llmserve.transfer.tcp import TcpTransport
from llmserve.transfer.ucx import UcxTransport
from tests.support.transports import need_transport

SIZE = 40 << 20
SLOT = 4 << 20


def _ucx(staging: Staging) -> Transport:
    need_transport("ucx")
    return UcxTransport(staging)


MAKERS: dict[str, Callable[[Staging], Transport]] = {
    "tcp": lambda staging: TcpTransport(staging=staging),
    "ucx": _ucx,
}


class StagedEnd:
    """A transport with one region of a fake device."""

    def __init__(self, kind: str, value: int, pinned_bytes: int = 1 << 30, plan: str = "") -> None:
        self.device = FakeDevice(pinned_bytes=pinned_bytes)
        staging = Staging(self.device, patience_seconds=2.0)
        self.transport = MAKERS[kind](staging)
        if plan:
            self.transport = FaultyTransport(self.transport, FaultPlan.parse(plan), staging=staging)
        region = self.device.allocate(SIZE)
        self.memory = self.device.view(region)
        self.memory[:] = value
        self.transport.register([region])

    def move(self, operation: str, far: "StagedEnd", size: int = SIZE) -> TransferStatus:
        spans = Spans(*(np.array([number]) for number in (0, 0, size)))
        try:
            peer = self.transport.connect(far.transport.describe())
            transfer = getattr(self.transport, operation)(peer, Batch(spans, spans))
        except TransferError as error:
            return TransferStatus(TransferState.FAILED, error.message)
        deadline = time.monotonic() + 20
        while (status := self.transport.poll(transfer)).state is TransferState.RUNNING:
            assert time.monotonic() < deadline, "the transfer does not end"
            time.sleep(0.0005)
        return status

    def close(self) -> None:
        self.transport.close()
        self.device.close()


Make = Callable[..., StagedEnd]


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[StagedEnd] = []

    def end(value: int, pinned_bytes: int = 1 << 30, plan: str = "") -> StagedEnd:
        made.append(StagedEnd(request.param, value, pinned_bytes, plan))
        return made[-1]

    yield end
    for one in made:
        one.close()


def _reads(operation: str, near: StagedEnd, far: StagedEnd) -> tuple[StagedEnd, StagedEnd]:
    """Which end is read from, and which end is written to."""
    return (far, near) if operation == "read" else (near, far)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("failing", ["source", "target"])
@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_copy_that_fails_midway_fails_the_transfer_and_nothing_else(
    make: Make, operation: str, failing: str, after: int
) -> None:
    near, far = make(1), make(2)
    source, target = _reads(operation, near, far)
    sent = int(source.memory[0])
    (source if failing == "source" else target).device.fail_copy(after)
    status = near.move(operation, far)
    assert status.state is TransferState.FAILED
    assert status.reason
    assert (source.memory == sent).all()
    again = near.move(operation, far)
    assert again.state is TransferState.DONE, again.reason
    assert (target.memory == sent).all()


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("operation", ["read", "write"])
def test_copies_that_fail_at_both_ends_keep_neither_waiting(make: Make, operation: str, after: int) -> None:
    """A part whose bytes never come must not keep the other end from telling that its own part failed."""
    near, far = make(1), make(2)
    source, target = _reads(operation, near, far)
    sent = int(source.memory[0])
    source.device.fail_copy(after)
    target.device.fail_copy()
    assert near.move(operation, far).state is TransferState.FAILED
    for end in (near, far):
        end.device.fail_copy(-1)  # a failure that no copy has met
    again = near.move(operation, far)
    assert again.state is TransferState.DONE, again.reason
    assert (target.memory == sent).all()


@pytest.mark.parametrize("poor", ["near", "far"])
@pytest.mark.parametrize("operation", ["read", "write"])
def test_without_pinned_memory_a_transfer_fails(make: Make, operation: str, poor: str) -> None:
    few = SLOT - 1
    near, far = make(1, few if poor == "near" else SIZE * 4), make(2, few if poor == "far" else SIZE * 4)
    assert near.move(operation, far).state is TransferState.FAILED
    assert (near.memory == 1).all()
    assert (far.memory == 2).all()


@pytest.mark.parametrize("operation", ["read", "write"])
def test_with_one_slot_at_each_end_a_transfer_goes_on(make: Make, operation: str) -> None:
    near, far = make(1, 16 << 20), make(2, 16 << 20)
    status = near.move(operation, far)
    assert status.state is TransferState.DONE, status.reason
    assert np.array_equal(near.memory, far.memory)


def test_a_fault_corrupts_the_memory_of_a_device_too(make: Make) -> None:
    near, far = make(1, plan="corrupt=1/1"), make(2)
    assert near.move("read", far).state is TransferState.DONE
    assert np.count_nonzero(near.memory != 2) == 1
    assert near.memory.max() == 2 ^ 0xFF


def test_an_engine_without_pinned_memory_does_not_start() -> None:
    """Its probes and digests need some. The transports are closed."""
    device = FakeDevice(pinned_bytes=1)
    staging = Staging(device)
    transport, region = TcpTransport(staging=staging), device.allocate(4096)
    with pytest.raises(TransferError, match="no pinned memory"):
        TransferEngine([transport], [region], shared=SharedTransfers(staging=staging))
    with pytest.raises(TransferError, match="closed"):
        transport.register([region])
    device.close()


def test_a_write_reaches_the_host(make: Make) -> None:
    """The other end knows nothing of devices."""
    near = make(1)
    memory = np.zeros(SIZE, np.uint8)
    far = TcpTransport() if isinstance(near.transport, TcpTransport) else UcxTransport()
    far.register([Region(memory.ctypes.data, SIZE)])
    peer = near.transport.connect(far.describe())
    spans = Spans(*(np.array([number]) for number in (0, 0, SIZE)))
    transfer = near.transport.write(peer, Batch(spans, spans))
    while near.transport.poll(transfer).state is TransferState.RUNNING:
        time.sleep(0.0005)
    assert (memory == 1).all()
    far.close()
