"""Every transport, between real processes: what transfer/base.py promises."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llmserve.core.errors import TransferError, TransportUnavailable
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
from llmserve.transfer.faults import FaultPlan
from llmserve.transfer.faulty import FaultyTransport
from llmserve.transfer.select import makers

FAR_SCRIPT = Path(__file__).with_name("transport_peer.py")
FAULTY = "faulty-"  # before the kind that the proxy stands before, on this end
SIZE = 65 << 20
SEED = 3
UNTOUCHED = 0xA5
PATIENCE_SECONDS = 20.0
Bytes = npt.NDArray[np.uint8]


def _pattern_function() -> Callable[[int, int, int], Bytes]:
    spec = importlib.util.spec_from_file_location("transport_peer", FAR_SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[int, int, int], Bytes] = module.pattern
    return function


pattern = _pattern_function()


class FarProcess:
    def __init__(self, kind: str, size: int = SIZE, seed: int = SEED) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(FAR_SCRIPT), kind.removeprefix(FAULTY), str(size), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.description = bytes.fromhex(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        while line := self.process.stdout.readline():
            if "INFO" not in line:  # the library under test logs there
                return line.strip()
        pytest.fail("the far process ended")

    def ask(self, *words: object) -> str:
        assert self.process.stdin
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._line()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


def make(kind: str) -> Transport:
    inner = makers("127.0.0.1")[kind.removeprefix(FAULTY)]()
    return FaultyTransport(inner, FaultPlan()) if kind.startswith(FAULTY) else inner


class Near:
    """This end: a transport over one region of its own."""

    def __init__(self, kind: str, size: int = SIZE) -> None:
        self.transport: Transport = make(kind)
        self.memory: Bytes = np.full(size, UNTOUCHED, np.uint8)
        self.transport.register([Region(self.memory.ctypes.data, self.memory.nbytes)])

    def finish(self, transfer: Transfer) -> TransferStatus:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (status := self.transport.poll(transfer)).state is TransferState.RUNNING:
            assert time.monotonic() < deadline, "the transfer does not end"
            time.sleep(0.0001)
        return status

    def attempt(self, peer: PeerName, batch: Batch) -> TransferState:
        """Of a read that may fail when it is submitted, or later."""
        try:
            return self.finish(self.transport.read(peer, batch)).state
        except TransferError:
            return TransferState.FAILED

    def read(self, peer: PeerName, batch: Batch) -> None:
        status = self.finish(self.transport.read(peer, batch))
        assert status.state is TransferState.DONE, status.reason

    def give_up(self, transfer: Transfer) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.transport.cancel(transfer)
            except TransferError:
                assert time.monotonic() < deadline, "the transfer cannot be cancelled"


def spans(*rows: tuple[int, int, int]) -> Spans:
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Spans(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy())


def one(length: int, local: int = 0, remote: int = 0, region: int = 0) -> Batch:
    return Batch(spans((0, local, length)), spans((region, remote, length)))


@pytest.fixture(scope="module", params=["tcp", "nixl", "ucx", "nccl", "shm", "faulty-tcp", "faulty-shm"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    try:
        make(name).close()
    except TransportUnavailable as error:
        pytest.skip(error.message)
    return name


@pytest.fixture(scope="module")
def far(kind: str) -> Iterator[FarProcess]:
    process = FarProcess(kind)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def shared(kind: str) -> Iterator[Near]:
    near = Near(kind)
    yield near
    near.transport.close()


@pytest.fixture
def near(shared: Near) -> Near:
    shared.memory[:] = UNTOUCHED
    return shared


@pytest.fixture
def peer(near: Near, far: FarProcess) -> PeerName:
    return near.transport.connect(far.description)


@pytest.fixture
def mortal(kind: str) -> Iterator[FarProcess]:
    """A far process of the test's own."""
    process = FarProcess(kind, seed=8)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def far_memory() -> list[Bytes]:
    return [pattern(SEED, region, SIZE) for region in range(2)]


@pytest.mark.parametrize("size", [1, 2, 4095, 4096, 4097, 1 << 20, 64 << 20])
def test_reads_exactly_what_was_asked_for(
    near: Near, peer: PeerName, far_memory: list[Bytes], size: int
) -> None:
    near.read(peer, one(size, local=3, remote=5, region=1))
    assert np.array_equal(near.memory[3 : 3 + size], far_memory[1][5 : 5 + size])
    assert (near.memory[:3] == UNTOUCHED).all()
    assert (near.memory[3 + size :] == UNTOUCHED).all()


@pytest.mark.parametrize("count", [1, 2, 100, 10_000])
def test_gathers_scattered_unaligned_spans(
    near: Near, peer: PeerName, far_memory: list[Bytes], count: int
) -> None:
    random = np.random.default_rng(count)
    lengths = random.integers(0, 3000, count)
    slots = random.permutation(count).astype(np.int64)
    local = Spans(np.zeros(count, np.int64), slots * 3001, lengths)
    remote = Spans(random.integers(0, 2, count), random.integers(0, SIZE - 3000, count), lengths)
    near.read(peer, Batch(local, remote))
    expected = np.full(SIZE, UNTOUCHED, np.uint8)
    for row in range(count):
        at, start, length = local.offsets[row], remote.offsets[row], lengths[row]
        expected[at : at + length] = far_memory[remote.regions[row]][start : start + length]
    assert np.array_equal(near.memory, expected)


def test_an_empty_batch_is_done(near: Near, peer: PeerName) -> None:
    near.read(peer, Batch(spans(), spans()))
    near.read(peer, one(0, local=SIZE, remote=SIZE))
    assert (near.memory == UNTOUCHED).all()


def test_many_batches_in_flight(near: Near, peer: PeerName, far_memory: list[Bytes]) -> None:
    size = 1 << 20
    transfers = [near.transport.read(peer, one(size, i * size, i * 1000)) for i in range(16)]
    for transfer in reversed(transfers):
        assert near.finish(transfer).state is TransferState.DONE
    for i in range(16):
        assert np.array_equal(near.memory[i * size : (i + 1) * size], far_memory[0][i * 1000 :][:size])


def test_writes_exactly_what_was_asked_for(near: Near, peer: PeerName, far: FarProcess) -> None:
    expected = pattern(SEED, 1, SIZE)
    near.memory[:] = 7
    rows = [(1, 11, 5000), (1, 70_001, 3), (1, 1 << 20, 9 << 20)]
    local = spans((0, 0, 5000), (0, 20_000, 3), (0, 1 << 20, 9 << 20))
    status = near.finish(near.transport.write(peer, Batch(local, spans(*rows))))
    assert status.state is TransferState.DONE, status.reason
    for _, offset, length in rows:
        expected[offset : offset + length] = 7
    assert far.ask("checksum", 1, 0, SIZE) == str(zlib.crc32(expected.tobytes()))
    near.memory[:] = pattern(SEED, 1, SIZE)  # put it back for the other tests
    near.finish(near.transport.write(peer, one(SIZE, region=1)))


def test_two_peers_at_once(near: Near, peer: PeerName, mortal: FarProcess, far_memory: list[Bytes]) -> None:
    other = near.transport.connect(mortal.description)
    assert other != peer
    size = 20 << 20
    first = near.transport.read(peer, one(size))
    second = near.transport.read(other, one(size, local=size))
    assert near.finish(second).state is TransferState.DONE
    assert near.finish(first).state is TransferState.DONE
    assert np.array_equal(near.memory[:size], far_memory[0][:size])
    assert np.array_equal(near.memory[size : 2 * size], pattern(8, 0, size))
    near.transport.disconnect(other)
    near.transport.disconnect(other)
    with pytest.raises(TransferError, match="not connected"):
        near.transport.read(other, one(1))


def test_connecting_again_is_the_same_peer(near: Near, peer: PeerName, far: FarProcess) -> None:
    assert near.transport.connect(far.description) == peer


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        ((0, 0, 10), (2, 0, 10)),
        ((0, 0, 10), (-1, 0, 10)),
        ((1, 0, 10), (0, 0, 10)),
        ((0, SIZE - 9, 10), (0, 0, 10)),
        ((0, 0, 10), (0, SIZE - 9, 10)),
        ((0, -1, 10), (0, 0, 10)),
        ((0, 0, 10), (0, -1, 10)),
        ((0, 0, -1), (0, 0, -1)),
        ((0, 0, SIZE), (0, 2**63 - 1, SIZE)),
        ((0, 0, 2**63 - 1), (0, 0, 2**63 - 1)),
        ((0, 0, 10), (0, 0, 11)),
    ],
)
@pytest.mark.parametrize("operation", ["read", "write"])
def test_refuses_what_is_out_of_bounds(
    near: Near, peer: PeerName, local: tuple[int, int, int], remote: tuple[int, int, int], operation: str
) -> None:
    start = getattr(near.transport, operation)
    with pytest.raises(TransferError):
        start(peer, Batch(spans(local), spans(remote)))
    good = (0, 0, 1)
    with pytest.raises(TransferError):
        start(peer, Batch(spans(good, local), spans(good, remote)))


@pytest.mark.parametrize("description", [b"", b"{}", b"\xff\x00", b"[1]", b'{"host": 1}'])
def test_refuses_a_malformed_description(near: Near, description: bytes) -> None:
    with pytest.raises(TransferError):
        near.transport.connect(description)


def test_cancel_leaves_memory_alone(near: Near, peer: PeerName, far_memory: list[Bytes]) -> None:
    transfers = [near.transport.read(peer, one(64 << 20)) for _ in range(3)]
    for transfer in transfers:
        near.give_up(transfer)
    near.memory[:] = UNTOUCHED
    near.read(peer, one(1000, local=64 << 20))  # the transport goes on working
    assert np.array_equal(near.memory[64 << 20 :][:1000], far_memory[0][:1000])
    assert (near.memory[: 64 << 20] == UNTOUCHED).all()


def test_the_death_of_a_peer_fails_its_transfers_only(
    near: Near, peer: PeerName, mortal: FarProcess, far_memory: list[Bytes]
) -> None:
    doomed = near.transport.connect(mortal.description)
    near.read(doomed, one(1))
    flying = near.transport.read(doomed, one(64 << 20))
    mortal.kill()
    assert near.finish(flying).state is not TransferState.RUNNING
    assert near.attempt(doomed, one(1 << 20)) is TransferState.FAILED
    near.transport.disconnect(doomed)
    near.read(peer, one(1000))
    assert np.array_equal(near.memory[:1000], far_memory[0][:1000])


def test_a_peer_that_is_not_there_is_an_error(near: Near, kind: str) -> None:
    gone = FarProcess(kind, size=1000)
    gone.kill()
    gone.stop()
    try:
        peer = near.transport.connect(gone.description)
    except TransferError:
        return
    assert near.attempt(peer, one(1)) is TransferState.FAILED


def test_memory_can_be_registered_anew(kind: str, mortal: FarProcess) -> None:
    near = Near(kind, 1 << 20)
    try:
        near.read(near.transport.connect(mortal.description), one(1000))
        fresh = bytes.fromhex(mortal.ask("register", 9))
        near.memory = np.full(1 << 20, UNTOUCHED, np.uint8)
        near.transport.register([Region(near.memory.ctypes.data, near.memory.nbytes)])
        near.read(near.transport.connect(fresh), one(1000))
        assert np.array_equal(near.memory[:1000], pattern(9, 0, 1000))
    finally:
        near.transport.close()


def test_close_ends_what_is_in_flight(kind: str, mortal: FarProcess) -> None:
    threads = set(threading.enumerate())
    near = Near(kind)
    peer = near.transport.connect(mortal.description)
    near.read(peer, one(1))
    transfers = [near.transport.read(peer, one(64 << 20)) for _ in range(6)]
    near.transport.close()
    near.transport.close()
    near.memory[:] = UNTOUCHED
    states = {near.transport.poll(transfer).state for transfer in transfers}
    assert TransferState.RUNNING not in states
    assert (near.memory == UNTOUCHED).all()
    assert set(threading.enumerate()) <= threads
    with pytest.raises(TransferError, match="closed"):
        near.transport.read(peer, one(1))


def test_a_peer_that_closes_leaves_nobody_waiting(kind: str, mortal: FarProcess) -> None:
    near = Near(kind)
    try:
        peer = near.transport.connect(mortal.description)
        near.read(peer, one(1))
        transfer = near.transport.read(peer, one(64 << 20))
        assert mortal.ask("close") == "closed"
        assert near.finish(transfer).state is not TransferState.RUNNING
    finally:
        near.transport.close()
