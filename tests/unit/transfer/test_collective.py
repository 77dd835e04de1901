"""What only torch.distributed's transport does: groups that meet, stall, end, and are made again."""

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as distributed

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import (
    Batch,
    Int64Array,
    PeerName,
    Region,
    Spans,
    Transfer,
    TransferState,
    TransferStatus,
)
from llmserve.transfer.collective import CollectiveTransport, backend, make_backend
from llmserve.transfer.collective.backend import Gloo, PendingMessage
from llmserve.transfer.collective.carrier import PIECE_BYTES, GroupCarrier, GroupCarriers, make_store
from llmserve.transfer.collective.rows import HostCopier
from llmserve.transfer.select import makers
from llmserve.transfer.twosided import TwoSidedTransport
from tests.support.idle import cpu_seconds_at_rest

SIZE = 3 * PIECE_BYTES
BLOCK = 1 << 16
MOST_AT_REST = 0.02  # CPU seconds of 0.3 s: of two ends, gloo's threads included
HERE, THERE = 7, 9  # the bytes that memory is filled with


class StallingCopier(HostCopier):
    """Gathers nothing while the gate is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.waiting = threading.Event()

    def gather(self, region: Any, offsets: Int64Array, lengths: Int64Array, packed: Any) -> None:
        self.waiting.set()
        assert self.gate.wait(10)
        super().gather(region, offsets, lengths, packed)


class End:
    def __init__(self, value: int, used: backend.Backend | None = None) -> None:
        carriers = GroupCarriers(used or make_backend("127.0.0.1", None))
        self.transport = TwoSidedTransport("127.0.0.1", carriers)
        self.memory = np.full(SIZE, value, np.uint8)
        self.transport.register([Region(self.memory.ctypes.data, SIZE)])

    def connect(self, far: "End") -> PeerName:
        return self.transport.connect(far.transport.describe())

    def finish(self, transfer: Transfer, seconds: float = 5.0) -> TransferStatus:
        deadline = time.monotonic() + seconds
        while (status := self.transport.poll(transfer)).state is TransferState.RUNNING:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        return status

    def read(self, description: bytes, batch: Batch) -> TransferStatus:
        return self.finish(self.transport.read(self.transport.connect(description), batch))


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    before = set(threading.enumerate())
    near, far = End(HERE), End(THERE)
    yield near, far
    near.transport.close()
    far.transport.close()
    assert set(threading.enumerate()) <= before


@pytest.fixture
def stalling() -> Iterator[tuple[End, End, StallingCopier]]:
    """The far end sends nothing that must be gathered until the gate is opened."""
    copier = StallingCopier()
    used = Gloo("127.0.0.1", torch)
    used.copier = copier
    near, far = End(HERE), End(THERE, used)
    yield near, far, copier
    copier.gate.set()
    near.transport.close()
    far.transport.close()


def one(length: int, offset: int = 0) -> Batch:
    span = Spans(np.array([0]), np.array([offset]), np.array([length]))
    return Batch(span, span)


def blocks(count: int) -> Batch:
    """Every second block: nothing that could be sent from where it lies."""
    zeros, lengths = np.zeros(count, np.int64), np.full(count, BLOCK, np.int64)
    spans = Spans(zeros, 2 * BLOCK * np.arange(count, dtype=np.int64), lengths)
    return Batch(spans, spans)


def listening() -> set[int]:
    """The TCP ports at which this process listens."""
    found = psutil.Process().net_connections("tcp")
    return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}


def edited(description: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(description), **fields}).encode()


def test_it_reports_what_really_runs() -> None:
    transport = makers("127.0.0.1")["nccl"]()
    assert transport.name == "gloo"
    transport.close()


def test_blocks_are_gathered_and_scattered(ends: tuple[End, End]) -> None:
    near, far = ends
    count = SIZE // BLOCK // 2
    assert near.read(far.transport.describe(), blocks(count)).state is TransferState.DONE
    table = near.memory.reshape(count, 2, BLOCK)
    assert (table[:, 0] == THERE).all()
    assert (table[:, 1] == HERE).all()


def test_the_default_group_of_the_process_is_left_alone(ends: tuple[End, End]) -> None:
    near, far = ends
    assert near.read(far.transport.describe(), one(100)).state is TransferState.DONE
    assert not distributed.is_initialized()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        default = distributed.group.WORLD
        far.transport.register([Region(far.memory.ctypes.data, SIZE)])
        assert near.read(far.transport.describe(), one(SIZE)).state is TransferState.DONE
        assert distributed.group.WORLD is default
    finally:
        distributed.destroy_process_group()
    assert near.read(far.transport.describe(), one(SIZE)).state is TransferState.DONE, (
        "it outlives the engine's"
    )


def test_the_far_side_checks_bounds_too(ends: tuple[End, End]) -> None:
    near, far = ends
    lie = edited(far.transport.describe(), regions=[SIZE * 2])
    peer = near.transport.connect(lie)
    outside = Batch(one(100).local, one(100, offset=SIZE).remote)
    for start in (near.transport.read, near.transport.write):
        status = near.finish(start(peer, outside))
        assert status.state is TransferState.FAILED
        assert "outside registered memory" in status.reason
    assert (near.memory == HERE).all()
    assert near.finish(near.transport.read(peer, one(100))).state is TransferState.DONE, "a new group"
    assert (near.memory[:100] == THERE).all()


def test_after_a_new_registration_the_old_group_is_gone(ends: tuple[End, End]) -> None:
    near, far = ends
    old = far.transport.describe()
    assert near.read(old, one(100)).state is TransferState.DONE
    fresh = np.full(SIZE, 5, np.uint8)
    far.transport.register([Region(fresh.ctypes.data, SIZE)])
    assert near.read(old, one(100)).state is TransferState.FAILED
    assert (near.memory[:100] == THERE).all()
    assert near.read(far.transport.describe(), one(100)).state is TransferState.DONE
    assert (near.memory[:100] == 5).all()


def test_a_reader_that_registers_anew_reads_into_its_new_memory(ends: tuple[End, End]) -> None:
    near, far = ends
    peer = near.connect(far)
    assert near.finish(near.transport.read(peer, one(100))).state is TransferState.DONE
    fresh = np.full(SIZE, HERE, np.uint8)
    near.transport.register([Region(fresh.ctypes.data, SIZE)])
    near.memory[:] = HERE
    assert near.finish(near.transport.read(near.connect(far), one(SIZE))).state is TransferState.DONE
    assert (fresh == THERE).all()
    assert (near.memory == HERE).all()


def test_gloo_listens_only_while_it_has_a_pair(ends: tuple[End, End]) -> None:
    """It keeps each connection of a stranger for as long as it listens."""
    near, far = ends
    before = listening()
    assert near.read(far.transport.describe(), one(100)).state is TransferState.DONE
    assert len(listening() - before) >= 2, "one at each end"
    near.transport.close()
    far.transport.close()
    assert not listening() - before


def test_ends_that_would_not_understand_each_other_do_not_meet() -> None:
    other = Gloo("127.0.0.1", torch)
    other.identity = "gloo of torch 1.0"
    near, far = End(HERE), End(THERE, other)
    with pytest.raises(TransferError, match=r"the peer runs gloo of torch 1\.0"):
        near.connect(far)
    near.transport.close()
    far.transport.close()


def test_a_cancelled_read_never_writes_again(stalling: tuple[End, End, StallingCopier]) -> None:
    near, far, copier = stalling
    transfer = near.transport.read(near.connect(far), blocks(100))
    assert copier.waiting.wait(30)
    started = time.monotonic()
    near.transport.cancel(transfer)
    assert time.monotonic() - started < backend.SILENCE.total_seconds() / 2
    near.memory[:] = HERE
    copier.gate.set()
    again = near.read(far.transport.describe(), one(BLOCK, offset=2 * BLOCK))
    assert again.state is TransferState.DONE, "the next read makes a new group"
    assert (near.memory[:BLOCK] == HERE).all()


def test_a_cancel_wakes_who_waits_for_a_message_on_the_wire(ends: tuple[End, End]) -> None:
    """Gloo itself does not: that message would end with its timeout, after seconds."""
    near, far = ends
    peer = near.connect(far)
    for delay in np.linspace(0, 0.008, 25):
        transfers = [start(peer, one(SIZE)) for start in (near.transport.read, near.transport.write)]
        time.sleep(delay)
        started = time.monotonic()
        for transfer in transfers:
            near.transport.cancel(transfer)
        assert time.monotonic() - started < backend.SILENCE.total_seconds() / 2


def test_a_peer_that_stalls_fails_the_read(
    stalling: tuple[End, End, StallingCopier], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far, copier = stalling
    monkeypatch.setattr(backend, "SILENCE", timedelta(milliseconds=100))
    status = near.finish(near.transport.read(near.connect(far), blocks(100)))
    assert status.state is TransferState.FAILED
    assert "Timed out" in status.reason
    near.memory[:] = HERE
    copier.gate.set()
    monkeypatch.undo()
    assert near.read(far.transport.describe(), one(100, offset=BLOCK)).state is TransferState.DONE
    assert (near.memory[:BLOCK] == HERE).all()


def test_waiting_does_not_spin(stalling: tuple[End, End, StallingCopier]) -> None:
    near, far, copier = stalling
    transfer = near.transport.read(near.connect(far), blocks(100))
    assert copier.waiting.wait(30)
    assert cpu_seconds_at_rest(time.process_time, 0.3, MOST_AT_REST) < MOST_AT_REST
    copier.gate.set()
    assert near.finish(transfer).state is TransferState.DONE


def test_idle_ends_sleep(ends: tuple[End, End]) -> None:
    near, far = ends
    assert near.read(far.transport.describe(), one(100)).state is TransferState.DONE
    assert cpu_seconds_at_rest(time.process_time, 0.3, MOST_AT_REST) < MOST_AT_REST


def test_a_peer_that_never_makes_its_group_is_given_up(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = ends
    monkeypatch.setattr("llmserve.transfer.twosided.client._DIAL_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        description = edited(far.transport.describe(), port=silent.getsockname()[1])
        accepted = threading.Thread(target=_greet, args=(silent,))
        accepted.start()
        with pytest.raises(TransferError, match="timed out"):
            near.transport.connect(description)
        accepted.join()


def _greet(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(struct.pack("<BxxxI", 1, 0))
        while connection.recv(4096):
            pass


@pytest.mark.parametrize("rest", [b"", struct.pack("<II", 1 << 30, 1), struct.pack("<II", 1, 1) + b"kv"])
def test_a_stranger_who_greets_does_not_disturb_the_server(ends: tuple[End, End], rest: bytes) -> None:
    near, far = ends
    fields = json.loads(far.transport.describe())
    greeting = struct.pack(
        "<8s16sQ", b"LSKV\x00\x00\x00\x01", bytes.fromhex(fields["token"]), fields["generation"]
    )
    with socket.create_connection(("127.0.0.1", fields["port"]), timeout=30.0) as stranger:
        stranger.sendall(greeting + rest)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):
            pass
    assert near.read(far.transport.describe(), one(100)).state is TransferState.DONE


def test_a_store_keeps_to_itself_once_the_group_is_made() -> None:
    here, there = socket.socketpair()
    with here, there:
        mine, theirs = make_store(here), make_store(there)
        mine.set("a", b"1")
        assert theirs.get("a") == b"1"
        theirs.seal()
        theirs.set("b", "2")
        assert theirs.get("b") == b"2"
        here.setblocking(False)
        with pytest.raises(BlockingIOError):
            here.recv(1)
        with pytest.raises(TransferError, match="after it was made"):
            theirs.get("c")


class _Arrived:
    def wait(self) -> None:
        """As NCCL's messages do after an abort."""


class _AbortedPair:
    def send(self, tensor: Any, acknowledged: bool) -> PendingMessage:
        return _Arrived()

    def receive(self, tensor: Any, acknowledged: bool) -> PendingMessage:
        return _Arrived()

    def cut(self) -> None: ...


def test_a_message_that_ends_because_of_a_cut_has_not_arrived() -> None:
    used = Gloo("127.0.0.1", torch)
    memory = np.zeros(10, np.uint8)
    with socket.socket() as unused:
        carrier = GroupCarrier(used, _AbortedPair(), None, [Region(memory.ctypes.data, 10)], unused)
        with pytest.raises(TransferError, match="cut"):
            carrier.receive(one(10).local, carrier.cut, lambda: None)
    used.close()


def test_a_machine_without_torch_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TransportUnavailable, match="torch cannot be imported"):
        CollectiveTransport()


@pytest.mark.parametrize(
    ("function", "gpu", "reason"),
    [("is_available", None, "no torch.distributed"), ("is_gloo_available", None, "no gloo")],
)
def test_a_torch_without_its_parts_is_told_so(
    monkeypatch: pytest.MonkeyPatch, function: str, gpu: int | None, reason: str
) -> None:
    monkeypatch.setattr(distributed, function, lambda: False)
    with pytest.raises(TransportUnavailable, match=reason):
        CollectiveTransport(gpu=gpu)


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(TransportUnavailable, match=r"192\.0\.2\.1"):
        CollectiveTransport("192.0.2.1")


@pytest.mark.parametrize(
    ("nccl", "gpus", "handling", "reason"),
    [
        (False, 8, "2", "no NCCL"),
        (True, 0, "2", "no GPU 1"),
        (True, 1, "2", "no GPU 1"),
        (True, 8, "3", "must be 2"),
        (True, 8, None, "must be 2"),
    ],
)
def test_why_nccl_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, nccl: bool, gpus: int, handling: str | None, reason: str
) -> None:
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    if handling:
        monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", handling)
    with pytest.raises(TransportUnavailable, match=reason):
        CollectiveTransport(gpu=1)
