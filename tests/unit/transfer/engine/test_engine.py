"""Which transports an engine goes on with, what its thread is set up for, and how it learns that a transfer
has ended: it is told, or it polls.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import (
    Batch,
    PeerName,
    Region,
    Spans,
    Transfer,
    TransferState,
    TransferStatus,
    Transport,
)
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.engine import SharedTransfers, TransferEngine
from llmserve.transfer.shm import ShmTransport
from llmserve.transfer.tcp import TcpTransport

PIECE = Spans(*(np.array([number]) for number in (0, 0, 1)))
BATCH = Batch(PIECE, PIECE)


def refusing(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> Transport:
    """The transport, which cannot register any memory."""

    def register(_: Sequence[Region]) -> None:
        raise TransferError(f"{transport.name}: no memory left to pin")

    monkeypatch.setattr(transport, "register", register)
    return transport


def test_a_transport_that_cannot_register_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = TcpTransport()
    engine = TransferEngine([refusing(left_out, monkeypatch), ShmTransport()], [])
    assert list(engine.transports) == list(engine.descriptions) == ["shm"]
    assert engine.unusable == {"tcp": "tcp: no memory left to pin"}
    with pytest.raises(TransferError, match="closed"):
        TcpTransport.register(left_out, [])
    engine.close()


def test_an_engine_whose_transports_all_fail_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    transports = [refusing(one, monkeypatch) for one in (ShmTransport(), TcpTransport())]
    with pytest.raises(TransferError, match=r"shm: no memory left to pin; .*tcp: no memory left to pin"):
        TransferEngine(transports, [])


def test_a_transport_that_cannot_register_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = TcpTransport()
    engine = TransferEngine([transport, ShmTransport()], [])
    refusing(transport, monkeypatch)

    async def fence() -> None:
        engine.fence(["tcp"])

    engine.call(fence())
    assert (list(engine.transports), list(engine.unusable)) == (["shm"], ["tcp"])
    engine.close()


def test_the_thread_of_an_engine_has_its_device() -> None:
    device = FakeDevice(lateness_seconds=0.0)
    staging = Staging(device)
    engine = TransferEngine([TcpTransport(staging=staging)], [], shared=SharedTransfers(staging=staging))
    engine.close()
    device.close()
    assert "kv-transfer" in device.threads


def test_a_transport_that_needs_it_has_progress_while_no_peer_is_expected() -> None:
    """Otherwise NIXL never closes the connections of strangers."""
    transport, steps = ShmTransport(), threading.Semaphore(0)
    transport.needs_progress, transport.progress = True, steps.release  # type: ignore[method-assign]
    engine = TransferEngine([transport], [])
    assert all(steps.acquire(timeout=30.0) for _ in range(257)), "again and again"
    engine.close()


class SlowTransport(ShmTransport):
    """A read ends when a test says so. tells: whether it calls who watches."""

    def __init__(self, tells: bool) -> None:
        super().__init__()
        self.tells = tells
        self.polls = 0
        self.started = threading.Event()
        self.state = TransferState.RUNNING
        self.on_end: Callable[[], object] = lambda: None

    def watch(self, on_end: Callable[[], object]) -> bool:
        self.on_end = on_end
        return self.tells

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        self.started.set()
        return self

    def poll(self, transfer: Transfer) -> TransferStatus:
        self.polls += 1
        return TransferStatus(self.state)

    def cancel(self, transfer: Transfer) -> None:
        """Nothing moves."""

    def end(self) -> None:
        self.state = TransferState.DONE
        if self.tells:
            self.on_end()


class SlowRead:
    """An engine whose only transport is slow, and a read over it."""

    def __init__(self, tells: bool) -> None:
        self.transport = SlowTransport(tells)
        self._memory = np.zeros(1, np.uint8)
        self.engine = TransferEngine([self.transport], [Region(self._memory.ctypes.data, 1)])

    async def read(self) -> TransferStatus:
        return await self.engine.read(self.transport, PeerName("peer"), BATCH)

    def begin(self) -> "asyncio.Future[TransferStatus]":
        async def start() -> asyncio.Future[TransferStatus]:
            return self.engine.spawn("read", self.read())

        task = self.engine.call(start())
        assert self.transport.started.wait(30)
        return task

    def result(self, read: "asyncio.Future[TransferStatus]") -> TransferState:
        async def wait() -> TransferStatus:
            return await asyncio.wait_for(read, 30)

        return self.engine.call(wait()).state


@pytest.fixture(params=[True, False])
def slow(request: pytest.FixtureRequest) -> Iterator[SlowRead]:
    slow = SlowRead(request.param)
    yield slow
    slow.engine.close()


def test_a_read_ends_when_its_transfer_does(slow: SlowRead) -> None:
    read = slow.begin()
    slow.transport.end()
    assert slow.result(read) is TransferState.DONE


def test_only_a_transport_that_cannot_tell_is_polled(slow: SlowRead) -> None:
    read = slow.begin()
    slow.engine.call(asyncio.sleep(0.02))  # the time that passes is what is measured
    polls = slow.transport.polls
    assert (polls == 1) is slow.transport.tells, polls
    slow.transport.end()
    assert slow.result(read) is TransferState.DONE


def test_an_end_that_comes_after_the_engine_is_not_an_error(slow: SlowRead) -> None:
    slow.engine.close()
    slow.transport.end()
