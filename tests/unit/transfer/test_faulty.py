"""What the proxy injects. That it adds nothing else, the conformance suite shows."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import TransferError
from llmserve.transfer.base import (
    Batch,
    Memory,
    PeerName,
    Region,
    Spans,
    Transfer,
    TransferState,
    TransferStatus,
)
from llmserve.transfer.faults import FaultPlan
from llmserve.transfer.faulty import FaultyTransport

RUNNING = TransferStatus(TransferState.RUNNING)
DONE = TransferStatus(TransferState.DONE)
A, B = PeerName("a"), PeerName("b")


@dataclass(eq=False)
class FakeTransfer:
    """What the test makes of it."""

    batch: Batch
    status: TransferStatus = DONE
    forgotten: bool = False


@dataclass
class FakeTransport:
    """Copies nothing; holds its user to the contract."""

    name: str = "fake"
    needs_progress: bool = True
    peers: set[PeerName] = field(default_factory=lambda: {A, B})
    last: FakeTransfer = field(default_factory=lambda: FakeTransfer(batch()))
    cancels_refused: int = 0
    calls: list[str] = field(default_factory=list)

    def reaches(self, memory: Memory) -> bool:
        return memory.on_host

    def register(self, regions: Sequence[Region]) -> None:
        self.calls.append("register")

    def describe(self) -> bytes:
        return b"here"

    def connect(self, description: bytes) -> PeerName:
        self.peers.add(PeerName(description.decode()))
        return PeerName(description.decode())

    def disconnect(self, peer: PeerName) -> None:
        self.peers.discard(peer)

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        if peer not in self.peers:
            raise TransferError(f"not connected to {peer}")
        self.last = FakeTransfer(batch)
        return self.last

    write = read

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, FakeTransfer)
        assert not transfer.forgotten, "polled after its end"
        transfer.forgotten = transfer.status is not RUNNING
        return transfer.status

    def watch(self, on_end: Callable[[], object]) -> bool:
        return False

    def progress(self) -> None:
        self.calls.append("progress")

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        assert not transfer.forgotten, "cancelled after its end"
        if self.cancels_refused:
            self.cancels_refused -= 1
            raise TransferError("later")
        transfer.forgotten = True

    def close(self) -> None:
        self.calls.append("close")


def batch(*lengths: int) -> Batch:
    """Pieces 100 bytes apart on this side."""
    n = len(lengths)
    spans = Spans(np.zeros(n, np.int64), np.arange(n) * 100, np.array(lengths, np.int64))
    return Batch(spans, spans)


class Kit:
    def __init__(self, plan: str) -> None:
        self.inner = FakeTransport()
        self.clock = VirtualClock()
        self.faulty = FaultyTransport(self.inner, FaultPlan.parse(plan), self.clock)
        self.memory = np.zeros(1000, np.uint8)
        self.faulty.register([Region(self.memory.ctypes.data, 1000)])

    def read(self, peer: PeerName = A) -> Transfer:
        return self.faulty.read(peer, batch(10, 0, 20))

    def poll(self, transfer: Transfer) -> TransferStatus:
        return self.faulty.poll(transfer)


def injected(fault: str) -> TransferStatus:
    return TransferStatus(TransferState.FAILED, f"fake: injected fault: {fault}")


def test_it_passes_for_the_transport_behind_it() -> None:
    kit = Kit("")
    assert (kit.faulty.name, kit.faulty.needs_progress, kit.faulty.describe()) == ("fake", True, b"here")
    kit.faulty.progress()
    kit.faulty.close()
    assert kit.inner.calls == ["register", "progress", "close"]
    kit.faulty.disconnect(A)
    with pytest.raises(TransferError, match="not connected"):
        kit.read()
    assert kit.poll(kit.read(kit.faulty.connect(b"a"))) == DONE


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_submit_that_fails_begins_nothing(operation: str) -> None:
    kit = Kit("fail_submit=1/1")
    before = kit.inner.last
    with pytest.raises(TransferError, match="injected fault: fail_submit"):
        getattr(kit.faulty, operation)(A, batch(1))
    assert kit.inner.last is before


def test_a_poll_fails_only_when_memory_is_no_longer_touched() -> None:
    kit = Kit("fail_poll=1/1")
    transfer = kit.read()
    kit.inner.last.status = RUNNING
    assert kit.poll(transfer) == RUNNING
    kit.inner.last.status = DONE
    assert kit.poll(transfer) == injected("fail_poll")


def test_a_true_failure_is_reported_as_it_is() -> None:
    kit = Kit("fail_poll=1/1,corrupt=1/1")
    transfer = kit.read()
    kit.inner.last.status = TransferStatus(TransferState.FAILED, "true")
    assert kit.poll(transfer).reason == "true"
    assert not kit.memory.any()


def test_a_delayed_end_is_seen_later() -> None:
    kit = Kit("delay=1/1 for 0.5s")
    transfer = kit.read()
    assert kit.poll(transfer) == RUNNING
    kit.clock.advance(0.49)
    assert kit.poll(transfer) == RUNNING
    kit.clock.advance(0.01)
    assert kit.poll(transfer) == DONE


@pytest.mark.parametrize("inner_has_ended", [True, False])
def test_what_stalls_can_be_cancelled(inner_has_ended: bool) -> None:
    kit = Kit("stall=1/1")
    transfer = kit.read()
    if not inner_has_ended:
        kit.inner.last.status = RUNNING
    kit.clock.advance(1e9)
    assert kit.poll(transfer) == RUNNING
    kit.faulty.cancel(transfer)
    assert kit.inner.last.forgotten


def test_a_cancel_that_must_be_repeated_is_passed_on() -> None:
    kit = Kit("")
    kit.inner.cancels_refused = 1
    transfer = kit.read()
    with pytest.raises(TransferError, match="later"):
        kit.faulty.cancel(transfer)
    kit.faulty.cancel(transfer)
    assert kit.inner.last.forgotten


@pytest.mark.parametrize("end", ["close", "register"])
@pytest.mark.parametrize("plan", ["stall=1/1", "delay=1/1 for 9s", "corrupt=1/1"])
def test_closing_and_registering_end_what_is_in_flight(plan: str, end: str) -> None:
    kit = Kit(plan)
    transfer = kit.read()
    if end == "close":
        kit.faulty.close()
    else:
        kit.faulty.register([])
    status = kit.poll(transfer)
    assert status.state is TransferState.FAILED
    assert end in status.reason
    assert not kit.memory.any(), "it is not ours any more"


def test_a_corrupt_read_differs_in_one_byte() -> None:
    kit = Kit("corrupt=1/1")
    places = set()
    for _ in range(100):
        kit.memory[:] = 7
        assert kit.poll(kit.read()) == DONE
        changed = np.flatnonzero(kit.memory != 7)
        assert kit.memory[changed].tolist() == [0xFF ^ 7]
        places.add(int(changed[0]))
    assert places <= {*range(10), *range(200, 220)}
    assert len(places) > 20


def test_a_cancelled_read_is_not_corrupted() -> None:
    kit = Kit("corrupt=1/1")
    kit.faulty.cancel(kit.read())
    assert not kit.memory.any()


def test_a_corrupt_write_loses_one_piece_and_leaves_its_source() -> None:
    kit = Kit("corrupt=1/1")
    lost = set()
    for _ in range(20):
        assert kit.poll(kit.faulty.write(A, batch(10, 0, 20))) == DONE
        sent = kit.inner.last.batch
        assert sent.local.lengths.tolist() == sent.remote.lengths.tolist()
        lost.add(tuple(sent.local.lengths.tolist()))
    assert lost == {(0, 0, 20), (10, 0, 0)}
    assert not kit.memory.any()


@pytest.mark.parametrize("operation", ["read", "write"])
def test_nothing_in_an_empty_batch_can_be_corrupted(operation: str) -> None:
    kit = Kit("corrupt=1/1")
    assert kit.poll(getattr(kit.faulty, operation)(A, batch(0, 0))) == DONE
    assert not kit.memory.any()


def test_a_malformed_batch_is_left_for_the_transport_to_refuse() -> None:
    kit = Kit("corrupt=1/1")
    malformed = Batch(batch(1, 2).local, batch(1).remote)
    kit.faulty.write(A, malformed)
    assert kit.inner.last.batch is malformed


def test_a_dropped_peer_fails_until_it_is_connected_again() -> None:
    kit = Kit("drop_peer=1/1 after 3 at most 1,stall=1/1 at most 1")
    stalled, flying, other = kit.read(A), kit.read(A), kit.read(B)
    with pytest.raises(TransferError, match="injected fault: drop_peer"):
        kit.read(A)
    assert kit.poll(stalled) == kit.poll(flying) == injected("drop_peer")
    assert kit.poll(other) == DONE
    with pytest.raises(TransferError, match="not connected"):
        kit.read(A)
    kit.faulty.connect(b"a")
    assert kit.poll(kit.read(A)) == DONE


@pytest.mark.parametrize("end", ["poll", "cancel"])
def test_what_has_ended_is_forgotten(end: str) -> None:
    kit = Kit("")
    getattr(kit.faulty, end)(kit.read())
    trace, kit.inner.last = weakref.ref(kit.inner.last), FakeTransfer(batch())
    gc.collect()
    assert trace() is None


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level("INFO", logger="llmserve.transfer.faulty"):
        yield caplog


def test_faults_change_at_run_time_and_are_logged(log: pytest.LogCaptureFixture) -> None:
    kit = Kit("")
    assert kit.poll(kit.read()) == DONE
    kit.faulty.faults.replace(FaultPlan.parse("fail_poll=1/1"))
    assert kit.poll(kit.read()) == injected("fail_poll")
    kit.faulty.faults.replace(FaultPlan())
    assert kit.poll(kit.read()) == DONE
    assert [record.message for record in log.records] == ["transport fake: injected fail_poll"]
