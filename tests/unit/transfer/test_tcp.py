"""What only the tcp transport does: its server against peers that lie, and its threads."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Region, Spans, TransferState, TransferStatus
from llmserve.transfer.tcp import TcpTransport
from tests.support.idle import cpu_seconds_at_rest

SIZE = 1 << 20


class End:
    def __init__(self, host: str = "127.0.0.1") -> None:
        self.transport = TcpTransport(host)
        self.memory = np.full(SIZE, 7, np.uint8)
        self.transport.register([Region(self.memory.ctypes.data, SIZE)])

    def read(self, description: bytes, offset: int = 0, length: int = 100) -> TransferStatus:
        return self.copy("read", description, offset, length)

    def copy(self, operation: str, description: bytes, offset: int, length: int) -> TransferStatus:
        peer = self.transport.connect(description)
        start = self.transport.read if operation == "read" else self.transport.write
        transfer = start(peer, Batch(_span(0, length), _span(offset, length)))
        deadline = time.monotonic() + 5
        while (status := self.transport.poll(transfer)).state is TransferState.RUNNING:
            assert time.monotonic() < deadline
            time.sleep(0.0002)
        return status


def _span(offset: int, length: int) -> Spans:
    return Spans(np.array([0]), np.array([offset]), np.array([length]))


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    before = set(threading.enumerate())
    near, far = End(), End()
    far.memory[:] = 9
    yield near, far
    near.transport.close()
    far.transport.close()
    assert set(threading.enumerate()) <= before


def edited(description: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(description), **fields}).encode()


def test_a_host_may_have_an_ipv6_address_alone() -> None:
    near, far = End("::1"), End("::1")
    try:
        far.memory[:] = 9
        assert near.read(far.transport.describe()).state is TransferState.DONE
        assert near.memory[0] == 9
    finally:
        near.transport.close()
        far.transport.close()


@pytest.mark.parametrize("operation", ["read", "write"])
def test_the_far_side_checks_bounds_too(ends: tuple[End, End], operation: str) -> None:
    near, far = ends
    lie = edited(far.transport.describe(), regions=[SIZE * 2])
    status = near.copy(operation, lie, SIZE, 100)
    assert status.state is TransferState.FAILED
    assert "outside registered memory" in status.reason
    assert (near.memory == 7).all()
    assert (far.memory == 9).all()
    assert near.read(lie).state is TransferState.DONE, "the next one dials again"
    assert (near.memory[:100] == 9).all()


def test_a_writer_learns_why_it_is_refused_while_it_still_sends(ends: tuple[End, End]) -> None:
    near, far = ends
    length = 32 << 20  # more than the kernel keeps for the owner
    memory = np.zeros(length, np.uint8)
    near.transport.register([Region(memory.ctypes.data, length)])
    status = near.copy("write", edited(far.transport.describe(), regions=[2 * length]), length, length)
    assert status.state is TransferState.FAILED
    assert "outside registered memory" in status.reason
    assert (far.memory == 9).all()


@pytest.mark.parametrize("fields", [{"token": "00" * 16}, {"generation": 99}])
def test_an_old_description_is_refused(ends: tuple[End, End], fields: dict[str, Any]) -> None:
    near, far = ends
    with pytest.raises(TransferError, match="refused by the peer"):
        near.transport.connect(edited(far.transport.describe(), **fields))


def test_after_a_new_registration_the_old_connection_is_gone(ends: tuple[End, End]) -> None:
    near, far = ends
    old = far.transport.describe()
    assert near.read(old).state is TransferState.DONE
    fresh = np.full(SIZE, 5, np.uint8)
    far.transport.register([Region(fresh.ctypes.data, SIZE)])
    assert near.read(old).state is TransferState.FAILED
    assert near.read(far.transport.describe()).state is TransferState.DONE
    assert (near.memory[:100] == 5).all()


@pytest.mark.parametrize(
    "raw", [b"", b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, b"LSKV", struct.pack("<8s16sQ32x", b"LSKV", b"", 0)]
)
def test_garbage_does_not_disturb_the_server(ends: tuple[End, End], raw: bytes) -> None:
    near, far = ends
    port = json.loads(far.transport.describe())["port"]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as stranger, suppress(OSError):
        stranger.sendall(raw)  # it may be hung up on before all is said
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):
            pass
    assert near.read(far.transport.describe()).state is TransferState.DONE


@pytest.mark.parametrize("name", ["kv-tcp-serve", "kv-tcp-stream"])
def test_a_connection_without_a_thread_is_refused_and_the_next_one_served(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    near, far = ends
    started = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        started(thread)

    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", refused)
        with pytest.raises(TransferError):
            near.transport.connect(far.transport.describe())
    assert near.read(far.transport.describe()).state is TransferState.DONE


@pytest.mark.parametrize(
    "request_bytes", [struct.pack("<BxxxI56x", 9, 1), struct.pack("<BxxxI56x", 1, 1 << 30)]
)
def test_a_malformed_request_ends_the_connection(ends: tuple[End, End], request_bytes: bytes) -> None:
    near, far = ends
    fields = json.loads(far.transport.describe())
    greeting = struct.pack(
        "<8s16sQ32x", b"LSKV\x00\x00\x00\x02", bytes.fromhex(fields["token"]), fields["generation"]
    )
    with socket.create_connection(("127.0.0.1", fields["port"]), timeout=30) as liar:
        liar.sendall(greeting)
        assert len(liar.recv(64, socket.MSG_WAITALL)) == 64
        liar.sendall(request_bytes)
        assert liar.recv(1) == b""
    assert near.read(far.transport.describe()).state is TransferState.DONE


def test_a_server_that_says_nothing_is_given_up(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = ends
    monkeypatch.setattr("llmserve.transfer.twosided.client._DIAL_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        description = edited(far.transport.describe(), port=silent.getsockname()[1])
        with pytest.raises(TransferError, match="timed out"):
            near.transport.connect(description)


def test_idle_threads_sleep(ends: tuple[End, End]) -> None:
    near, far = ends
    near.read(far.transport.describe())
    clocks = [
        time.pthread_getcpuclockid(t.ident) for t in threading.enumerate() if "kv-tcp" in t.name and t.ident
    ]
    assert len(clocks) >= 4, "two acceptors, a server and a stream"
    assert cpu_seconds_at_rest(lambda: sum(map(time.clock_gettime, clocks)), 0.2, most=0.002) < 0.002
