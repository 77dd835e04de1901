"""What only the shm transport does: whose memory it is, who may read it, how calls are cut."""

import ctypes
import gc
import json
import mmap
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import Batch, Int64Array, PeerName, Region, Spans, TransferState, TransferStatus
from llmserve.transfer.shm import ShmTransfer, ShmTransport, identity, memory

SIZE = 2 * memory.CALL_BYTES
LARGE = SIZE  # takes several calls
PAGE = mmap.PAGESIZE

FAR = """
import os, sys
import numpy as np
from llmserve.transfer.base import Region
from llmserve.transfer.shm import ShmTransport
far, kept = ShmTransport(), np.full(int(sys.argv[1]), 9, np.uint8)
far.register([Region(kept.ctypes.data, kept.nbytes)])
print(far.describe().decode(), flush=True)
"""
UNTIL_TOLD = "sys.stdin.readline()\n"
BECOME_ANOTHER = """
os.execv(sys.executable, [sys.executable, "-c", "import sys; print('other', flush=True); sys.stdin.read()"])
"""
HIDE = "import ctypes\nassert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE\n"
STRANGER = """
import os, sys
from llmserve.core.errors import TransferError
from llmserve.transfer.shm import ShmTransport
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
near = ShmTransport()
try:
    near.connect(sys.argv[1].encode())
except TransferError as error:
    print(error.message)
near.close()
"""


class Far:
    """A process with SIZE bytes of 9."""

    def __init__(self, script: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(SIZE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.description = self.line().encode()

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def __enter__(self) -> "Far":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class End:
    """A transport of this process."""

    def __init__(self, fill: int, size: int = SIZE) -> None:
        self.transport = ShmTransport()
        self.memory = np.full(size, fill, np.uint8)
        self.transport.register([Region(self.memory.ctypes.data, size)])

    def connect(self, description: bytes) -> PeerName:
        return self.transport.connect(description)

    def read(self, peer: PeerName, length: int = 100) -> TransferStatus:
        return self.finish(self.transport.read(peer, Batch(_span(length), _span(length))))

    def write(self, peer: PeerName, length: int = 100) -> TransferStatus:
        return self.finish(self.transport.write(peer, Batch(_span(length), _span(length))))

    def finish(self, transfer: Any) -> TransferStatus:
        deadline = time.monotonic() + 30
        while (status := self.transport.poll(transfer)).state is TransferState.RUNNING:
            assert time.monotonic() < deadline
            time.sleep(0.0002)
        return status


def _span(length: int) -> Spans:
    return Spans(np.array([0]), np.array([0]), np.array([length]))


@pytest.fixture
def near() -> Iterator[End]:
    before = set(threading.enumerate())
    end = End(7)
    yield end
    end.transport.close()
    assert set(threading.enumerate()) <= before


@pytest.fixture
def far() -> Iterator[End]:
    end = End(9)
    yield end
    end.transport.close()


def edited(description: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(description), **fields}).encode()


# -- who is there


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"boot_id": "another"}, "on another host"),
        ({"pid_namespace": 1}, "another pid namespace"),
        ({"nonce": "another"}, "not the one that was described"),
        ({"lengths": [SIZE + 1]}, "not the one that was described"),
        ({"beacon": 8}, "does not have that memory"),
        ({"pid": -1}, "malformed"),
        ({"lengths": []}, "malformed"),
        ({"lengths": [-1]}, "malformed"),
        ({"lengths": [1 << 63]}, "malformed"),
        ({"addresses": ["x"]}, "malformed"),
        ({"addresses": [float("inf")]}, "malformed"),
    ],
)
def test_a_description_is_believed_only_as_it_was_made(
    near: End, far: End, fields: dict[str, Any], reason: str
) -> None:
    near.connect(far.transport.describe())
    with pytest.raises(TransferError, match=reason):
        near.connect(edited(far.transport.describe(), **fields))


@pytest.mark.parametrize("length", [100, LARGE])
@pytest.mark.parametrize("operation", ["read", "write"])
def test_the_same_process_number_is_not_the_same_process(near: End, operation: str, length: int) -> None:
    """A program that was replaced keeps its number and its start time."""
    with Far(FAR + UNTIL_TOLD + BECOME_ANOTHER) as far:
        peer = near.connect(far.description)
        attempt = getattr(near, operation)
        assert attempt(peer, length).state is TransferState.DONE
        far.tell()
        assert far.line() == "other"
        status = attempt(peer, length)
        assert status.state is TransferState.FAILED
        assert f"process {far.process.pid}" in status.reason
        with pytest.raises(TransferError):
            near.connect(far.description)


def test_a_process_that_has_ended_is_told_so(near: End) -> None:
    with Far(FAR + UNTIL_TOLD) as far:
        peer = near.connect(far.description)
        far.process.kill()
        far.process.wait()
        status = near.read(peer)
        assert status == TransferStatus(TransferState.FAILED, f"shm: process {far.process.pid} has ended")
        with pytest.raises(TransferError, match="has ended"):
            near.connect(far.description)


def test_a_process_that_may_not_be_accessed_is_told_so() -> None:
    with Far(FAR + HIDE + UNTIL_TOLD) as far:
        command = [sys.executable, "-c", STRANGER, far.description.decode()]
        told = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert "may not access the memory of process" in told.stdout, told
        assert "ptrace_scope" in told.stdout


# -- what holds, and for how long


@pytest.mark.parametrize("length", [100, LARGE])
def test_a_new_registration_ends_the_old_description(near: End, far: End, length: int) -> None:
    old = far.transport.describe()
    peer = near.connect(old)
    assert near.read(peer, length).state is TransferState.DONE
    fresh = np.full(SIZE, 5, np.uint8)
    far.transport.register([Region(fresh.ctypes.data, SIZE)])
    assert "registered" in near.read(peer, length).reason
    near.memory[:] = 1
    assert near.write(peer, length).state is TransferState.FAILED
    with pytest.raises(TransferError, match="registered"):
        near.connect(old)
    assert near.read(near.connect(far.transport.describe()), length).state is TransferState.DONE
    assert (near.memory[:length] == 5).all()
    assert (far.memory[:length] == 9).all()


def test_who_has_closed_is_neither_read_nor_written(near: End, far: End) -> None:
    peer = near.connect(far.transport.describe())
    far.transport.close()
    assert near.read(peer).state is TransferState.FAILED
    near.memory[:] = 1
    assert near.write(peer).state is TransferState.FAILED
    assert (far.memory == 9).all()


@pytest.mark.parametrize("gone_from", [0, 1])
def test_memory_that_is_no_longer_mapped_fails_the_read(near: End, gone_from: int) -> None:
    mapped = mmap.mmap(-1, 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    far = ShmTransport()
    far.register([Region(address, 2 * PAGE)])
    peer = near.connect(far.describe())
    assert near.read(peer, 2 * PAGE).state is TransferState.DONE
    mprotect = ctypes.CDLL(None).mprotect
    assert mprotect(ctypes.c_void_p(address + gone_from * PAGE), PAGE, 0) == 0
    status = near.read(peer, 2 * PAGE)
    far.close()
    assert status.state is TransferState.FAILED
    assert "does not have that memory" in status.reason


def test_registering_ends_this_sides_transfers(near: End, far: End) -> None:
    peer = near.connect(far.transport.describe())
    transfer = near.transport.read(peer, Batch(_span(LARGE), _span(LARGE)))
    near.transport.register([Region(near.memory.ctypes.data, SIZE)])
    assert near.transport.poll(transfer).reason == "shm: the memory was registered anew"


# -- one call after the other


class SlowSteps:
    """Counts its steps, of which there are three."""

    def __init__(self) -> None:
        self.made = 0

    def steps(self) -> Iterator[None]:
        for step in range(3):
            if step:
                yield
            self.made += 1


def test_a_transfer_makes_one_call_each_time_it_is_asked_about() -> None:
    slow = SlowSteps()
    transfer = ShmTransfer(slow.steps())
    found = []
    for _ in range(4):
        transfer.advance()
        found.append((slow.made, transfer.status.state.value))
    assert found == [(1, "running"), (2, "running"), (3, "done"), (3, "done")]


def test_a_transfer_that_was_cancelled_makes_no_call_any_more(near: End, far: End) -> None:
    peer = near.connect(far.transport.describe())
    transfer = near.transport.read(peer, Batch(_span(LARGE), _span(LARGE)))
    near.transport.cancel(transfer)
    near.memory[:] = 1
    assert near.transport.poll(transfer) == TransferStatus(TransferState.FAILED, "shm: cancelled")
    assert (near.memory == 1).all()


def test_what_is_done_stays_done() -> None:
    transfer = ShmTransfer(iter(()))
    transfer.advance()
    transfer.stop("cancelled")
    assert transfer.status.state is TransferState.DONE


def test_what_has_ended_is_forgotten(near: End, far: End) -> None:
    peer = near.connect(far.transport.describe())
    transfers = [near.transport.read(peer, Batch(_span(LARGE), _span(LARGE))) for _ in range(2)]
    near.transport.cancel(transfers.pop())
    near.finish(transfers[0])
    traces = [weakref.ref(transfer.steps) for transfer in transfers if isinstance(transfer, ShmTransfer)]
    transfers.clear()
    gc.collect()
    assert [trace() for trace in traces] == [None]


# -- system calls


@dataclass(frozen=True)
class Piece:
    local: int
    remote: int
    length: int

    def bytes(self) -> list[tuple[int, int]]:
        return [(self.local + i, self.remote + i) for i in range(self.length)]


PIECES = st.lists(st.builds(Piece, st.integers(0, 99), st.integers(0, 99), st.integers(0, 25)), max_size=12)


@given(PIECES)
def test_cutting_keeps_every_byte_in_order(pieces: list[Piece]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "CALL_BYTES", 10)
        patch.setattr(memory, "CALL_PIECES", 3)
        calls = list(memory.copies(*map(_column(pieces), ("local", "remote", "length"))))
    for call in calls:
        assert 0 < len(call.local) <= 3
        assert call.total_bytes == call.local[:, 1].sum() <= 10
        assert call.local.flags.c_contiguous
        assert (call.local[:, 1] == call.remote[:, 1]).all()
    rows = [
        (*a, *b[:1]) for call in calls for a, b in zip(call.local.tolist(), call.remote.tolist(), strict=True)
    ]
    copied = [pair for start, length, remote in rows for pair in Piece(start, remote, length).bytes()]
    assert copied == [pair for piece in pieces for pair in piece.bytes()]


def _column(pieces: Sequence[Piece]) -> Any:
    def column(name: str) -> Int64Array:
        return np.array([getattr(piece, name) for piece in pieces], np.int64)

    return column


# -- machines without it


def test_a_system_without_the_calls_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    with pytest.raises(TransportUnavailable, match="no process_vm_readv"):
        ShmTransport()


def test_a_system_without_proc_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(identity, "_BOOT_ID", tmp_path / "absent")
    with pytest.raises(TransportUnavailable, match="absent"):
        ShmTransport()


def test_a_sandbox_that_forbids_the_calls_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> bytes:
        raise TransferError("shm: Operation not permitted")

    monkeypatch.setattr(memory.ProcessMemory, "fetch", forbidden)
    threads = set(threading.enumerate())
    with pytest.raises(TransportUnavailable, match="not permitted"):
        ShmTransport()
    assert set(threading.enumerate()) <= threads
