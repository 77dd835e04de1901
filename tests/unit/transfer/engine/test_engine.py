"""How the engine learns that a transfer has ended: it is told, or it polls."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from llmserve.transfer.base import Batch, PeerName, Region, Spans, Transfer, TransferState, TransferStatus
from llmserve.transfer.engine.engine import TransferEngine
from llmserve.transfer.shm import ShmTransport

PIECE = Spans(*(np.array([number]) for number in (0, 0, 1)))
BATCH = Batch(PIECE, PIECE)


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
        assert self.transport.started.wait(5)
        return task

    def result(self, read: "asyncio.Future[TransferStatus]") -> TransferState:
        async def wait() -> TransferStatus:
            return await asyncio.wait_for(read, 5)

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
