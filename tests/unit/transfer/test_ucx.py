"""What only the ucx transport does: how its absence is told, peers that lie, stop or die, and its thread."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import Batch, PeerName, Region, Spans, Transfer, TransferState, TransferStatus
from llmserve.transfer.spans import pack_spans
from llmserve.transfer.ucx import UcxTransport, wire
from llmserve.transfer.ucx.library import Bytes, UcxEndpoint, UcxWorker
from llmserve.transfer.ucx.server import UcxServer
from tests.support.idle import cpu_seconds_at_rest
from tests.support.transports import need_transport

SIZE = 1 << 20


# -- without ucxx


def test_a_machine_without_ucxx_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ucxx", None)
    with pytest.raises(TransportUnavailable, match=r"cannot be imported.*llmserve\[ucx\]"):
        UcxTransport()


class FakeApi:
    """What is used of ucxx.libucxx before a worker is there; no context can be made."""

    class Feature:
        TAG, WAKEUP = 1, 2

    def get_ucx_version(self) -> tuple[int, int, int]:
        return (1, 21, 0)

    def UCXContext(self, options: dict[str, str], features: Any) -> Any:  # noqa: N802 (ucxx's name)
        assert options["RCACHE_ENABLE"] == "y", "UCX crashes without its registration cache"
        assert options["TCP_MAX_POLL"] == "1", "UCX crashes over the events of a socket it has just closed"
        raise RuntimeError("no devices")


@pytest.mark.parametrize(
    ("version", "reason"),
    [("0.41.00", "ucxx is 0.41.00, needed is 0.52"), ("0.52.00", "no worker: .*no devices")],
)
def test_a_ucxx_that_does_not_work_is_told_so(
    monkeypatch: pytest.MonkeyPatch, version: str, reason: str
) -> None:
    names: dict[str, dict[str, Any]] = {
        "ucxx": {"__version__": version, "libucxx": FakeApi()},
        "ucxx._lib": {},
        "ucxx._lib.arr": {"Array": object},
        "ucxx.types": {"Tag": int, "TagMask": int},
    }
    for name, content in names.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(TransportUnavailable, match=reason):
        UcxTransport()


# -- the cutting of batches

ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 50), st.integers(1, 30)), min_size=1, max_size=20)


def spans(*rows: tuple[int, int, int]) -> Spans:
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Spans(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy())


def one(length: int, local: int = 0, remote: int = 0) -> Batch:
    return Batch(spans((0, local, length)), spans((0, remote, length)))


def bytes_of(spans: Spans) -> list[tuple[int, int]]:
    rows = zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True)
    return [(region, offset + i) for region, offset, length in rows for i in range(length)]


@settings(deadline=None)  # the machine may be busy
@given(ROWS, st.integers(1, 40), st.integers(1, 4))
def test_parts_are_bounded_and_hold_every_byte_in_order(
    rows: list[tuple[int, int, int]], part_bytes: int, part_spans: int
) -> None:
    batch = Batch(spans(*rows), spans(*((1 - region, offset + 7, length) for region, offset, length in rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "PART_BYTES", part_bytes)
        patch.setattr(wire, "PART_SPANS", part_spans)
        parts = list(wire.parts(batch))
    for part in parts:
        assert 0 < part.local.total_bytes <= part_bytes
        assert part.local.lengths.tolist() == part.remote.lengths.tolist()
        assert len(part.local.lengths) <= part_spans
    assert [at for part in parts for at in bytes_of(part.local)] == bytes_of(batch.local)
    assert [at for part in parts for at in bytes_of(part.remote)] == bytes_of(batch.remote)


@pytest.mark.parametrize("rows", [(), [(0, 0, 0)], [(0, 0, 8), (0, 8, -8)]])
def test_a_part_has_bytes(rows: list[tuple[int, int, int]]) -> None:
    with pytest.raises(TransferError, match="malformed spans"):
        wire.part_spans(pack_spans(spans(*rows)))


@pytest.mark.parametrize(
    "raw", [b"", b"LSUX", b"x" * 16, wire.ControlMessage(wire.MessageKind.BYE, 1).pack().tobytes()[:-1]]
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(TransferError, match="not a message"):
        wire.unpack(raw)


def test_a_garbled_address_is_refused() -> None:
    text = wire.pack_address(b"address")
    assert wire.unpack_address(text) == b"address"
    for wrong in ("", "AAAA", "B" + text[1:], text[:-4]):
        with pytest.raises(ValueError, match="garbled"):
            wire.unpack_address(wrong)


# -- with ucxx


class End:
    def __init__(self, fill: int) -> None:
        self.transport = UcxTransport()
        self.memory: Bytes = np.full(SIZE, fill, np.uint8)
        self.transport.register([Region(self.memory.ctypes.data, SIZE)])

    def read(self, description: bytes, batch: Batch | None = None) -> TransferStatus:
        peer = self.transport.connect(description)
        return finish(self.transport, self.transport.read(peer, batch or one(100)))


def finish(transport: UcxTransport, transfer: Transfer, seconds: float = 5.0) -> TransferStatus:
    deadline = time.monotonic() + seconds
    while (status := transport.poll(transfer)).state is TransferState.RUNNING:
        assert time.monotonic() < deadline, "the transfer does not end"
        time.sleep(0.0005)
    return status


@pytest.fixture(scope="module")
def ucxx() -> None:
    need_transport("ucx")


@pytest.fixture
def ends(ucxx: None) -> Iterator[tuple[End, End]]:
    before = set(threading.enumerate())
    near, far = End(7), End(9)
    yield near, far
    near.transport.close()
    far.transport.close()
    assert set(threading.enumerate()) <= before


def edited(description: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(description), **fields}).encode()


def test_the_far_side_checks_bounds_too(ends: tuple[End, End]) -> None:
    near, far = ends
    lie = edited(far.transport.describe(), regions=[SIZE * 2])
    status = near.read(lie, one(100, remote=SIZE))
    assert status.state is TransferState.FAILED
    assert "outside registered memory" in status.reason
    assert (near.memory == 7).all()
    assert near.read(lie).state is TransferState.DONE, "the next one connects again"
    assert (near.memory[:100] == 9).all()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 1}, "speaks version 1"),
        ({"ucx": "1.19.2"}, "the peer has UCX 1.19.2"),
        ({"generation": 99}, "registered anew"),
        ({"token": "00"}, "no answer within"),
        ({"worker": "AAAA"}, "malformed description"),
        ({"regions": 1}, "malformed description"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], reason: str
) -> None:
    near, far = ends
    monkeypatch.setattr("llmserve.transfer.ucx.client.DIAL_SECONDS", 0.2)
    with pytest.raises(TransferError, match=reason):
        near.transport.connect(edited(far.transport.describe(), **fields))
    assert near.read(far.transport.describe()).state is TransferState.DONE


def test_a_peer_that_says_nothing_is_given_up(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = ends
    monkeypatch.setattr("llmserve.transfer.ucx.client.DIAL_SECONDS", 0.1)
    monkeypatch.setattr(UcxServer, "_accept_peer", lambda self, message: None)
    silent = End(1)
    try:
        with pytest.raises(TransferError, match="no answer within"):
            near.transport.connect(silent.transport.describe())
    finally:
        silent.transport.close()
    assert near.read(far.transport.describe()).state is TransferState.DONE


@pytest.mark.parametrize(("breaks", "works"), [(1, True), (3, True), (4, False)])
def test_a_connection_that_breaks_while_it_is_made_is_made_again(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch, breaks: int, works: bool
) -> None:
    near, far = ends
    dials = []
    connect = UcxWorker.connect

    def break_some(worker: UcxWorker, address: bytes) -> UcxEndpoint:
        endpoint = connect(worker, address)
        if worker is near.transport._loop.worker:
            dials.append(address)
            if len(dials) <= breaks:
                endpoint.close()
        return endpoint

    monkeypatch.setattr(UcxWorker, "connect", break_some)
    if works:
        assert near.read(far.transport.describe()).state is TransferState.DONE
        return
    with pytest.raises(TransferError, match="the connection broke"):
        near.transport.connect(far.transport.describe())


def test_a_peer_that_is_gone_is_an_error(ends: tuple[End, End]) -> None:
    near, _ = ends
    gone = End(1)
    description = gone.transport.describe()
    gone.transport.close()
    with pytest.raises(TransferError, match="ucx: "):
        near.transport.connect(description)


def test_after_a_new_registration_the_old_connection_is_gone(ends: tuple[End, End]) -> None:
    near, far = ends
    old = far.transport.describe()
    peer = near.transport.connect(old)
    assert near.read(old).state is TransferState.DONE
    fresh = np.full(SIZE, 5, np.uint8)
    far.transport.register([Region(fresh.ctypes.data, SIZE)])
    status = finish(near.transport, near.transport.read(peer, one(100)))
    assert status.state is TransferState.FAILED
    assert "registered anew" in status.reason
    with pytest.raises(TransferError, match="registered anew"):
        near.transport.connect(old)
    assert near.read(far.transport.describe()).state is TransferState.DONE
    assert (near.memory[:100] == 5).all()


def test_a_process_can_read_from_itself(ends: tuple[End, End]) -> None:
    near, _ = ends
    near.memory[500:600] = 3
    assert near.read(near.transport.describe(), one(100, remote=500)).state is TransferState.DONE
    assert (near.memory[:100] == 3).all()


def test_one_that_disconnects_is_forgotten_by_the_owner(ends: tuple[End, End]) -> None:
    near, far = ends
    peer = near.transport.connect(far.transport.describe())
    assert members(far) == 1
    near.transport.disconnect(peer)
    await_members(far, 0)
    await_members(near, 0)


def members(end: End) -> int:
    """Connections that the loop still knows."""
    return len(end.transport._loop._members)


def await_members(end: End, count: int) -> None:
    deadline = time.monotonic() + 5
    while members(end) != count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Stranger:
    """A bare UCX worker that says to a transport whatever it is told to."""

    def __init__(self, description: bytes) -> None:
        self.fields = json.loads(description)
        self.worker = UcxWorker()
        self.endpoint: UcxEndpoint = self.worker.connect(wire.unpack_address(self.fields["worker"]))

    def send(self, raw: bytes, tag: int = wire.CONTROL_TAG) -> None:
        request = self.endpoint.send(np.frombuffer(raw, np.uint8), tag)
        deadline = time.monotonic() + 5
        while not request.over:
            assert time.monotonic() < deadline
            self.worker.progress()

    def tell(self, kind: wire.MessageKind, link: int, part: int = 0, body: bytes = b"") -> None:
        self.send(wire.ControlMessage(kind, link, part, body).pack().tobytes())

    def hello(self, **changes: Any) -> None:
        hello = {
            "token": self.fields["token"],
            "generation": self.fields["generation"],
            "worker": wire.pack_address(self.worker.address),
        }
        self.tell(wire.MessageKind.HELLO, 0, 1, json.dumps({**hello, **changes}).encode())

    def answer(self) -> wire.ControlMessage:
        deadline = time.monotonic() + 5
        while True:
            self.worker.progress()
            for arrival in self.worker.arrivals():
                while not arrival.request.over:
                    self.worker.progress()
                return wire.unpack(arrival.request.buffer.tobytes())
            assert time.monotonic() < deadline, "no answer"

    def close(self) -> None:
        self.endpoint.close()
        self.worker.close()


@pytest.fixture
def stranger(ends: tuple[End, End]) -> Iterator[Stranger]:
    one_more = Stranger(ends[1].transport.describe())
    yield one_more
    one_more.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 100_000,
        wire.ControlMessage(wire.MessageKind.HELLO, 0, 1, b"{").pack().tobytes(),
        wire.ControlMessage(wire.MessageKind.HELLO, 0, 1, b'{"token": 1}').pack().tobytes(),
        wire.ControlMessage(wire.MessageKind.READ, 999, 1).pack().tobytes(),
    ],
)
@pytest.mark.parametrize("tag", [wire.CONTROL_TAG, wire.data_tag(1, 1)])
def test_garbage_does_not_disturb_the_server(
    ends: tuple[End, End], stranger: Stranger, raw: bytes, tag: int
) -> None:
    near, far = ends
    stranger.send(raw, tag)
    assert near.read(far.transport.describe()).state is TransferState.DONE
    assert members(far) == 1


def test_a_garbled_address_does_not_end_the_server(ends: tuple[End, End], stranger: Stranger) -> None:
    near, far = ends
    garbled = "B" + wire.pack_address(stranger.worker.address)[1:]
    stranger.hello(worker=garbled)
    assert near.read(far.transport.describe()).state is TransferState.DONE
    assert members(far) == 1


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        (wire.MessageKind.READ, b"x", "malformed spans"),
        (wire.MessageKind.WRITE, pack_spans(spans((0, 0, 8), (0, 8, 0))), "malformed spans"),
        (wire.MessageKind.READ, pack_spans(spans((0, SIZE, 1))), "outside registered memory"),
        (wire.MessageKind.WRITE, pack_spans(spans((1, 0, 1))), "outside registered memory"),
        (wire.MessageKind.READ, pack_spans(spans(*[(0, 0, SIZE)] * 17)), "more was asked for"),
        (wire.MessageKind.READY, b"", "nobody asked for"),
    ],
)
def test_a_request_that_is_not_allowed_is_refused(
    stranger: Stranger, kind: wire.MessageKind, body: bytes, reason: str
) -> None:
    stranger.hello()
    welcome = stranger.answer()
    assert (welcome.kind, welcome.link) == (wire.MessageKind.WELCOME, 1)
    stranger.tell(kind, welcome.part, 1, body)
    refusal = stranger.answer()
    assert refusal.kind is wire.MessageKind.REFUSED
    assert reason in refusal.body.decode()
    stranger.tell(wire.MessageKind.BYE, welcome.part)


def test_a_peer_that_does_not_take_leave_is_left(stranger: Stranger, ends: tuple[End, End]) -> None:
    stranger.hello()
    assert stranger.answer().kind is wire.MessageKind.WELCOME
    started = time.monotonic()
    ends[1].transport.close()
    assert time.monotonic() - started < 3.5, "less than two dials may take"
    assert stranger.answer().kind is wire.MessageKind.BYE


def test_idle_threads_sleep(ends: tuple[End, End]) -> None:
    near, far = ends
    near.read(far.transport.describe())
    used = cpu_seconds_at_rest(time.process_time, 0.3, most=0.003)
    assert used < 0.003, "UCX's own threads are in it"


# -- other processes


class Process:
    def __init__(self, *argv: str, env: dict[str, str] | None = None) -> None:
        environment = {**os.environ, **(env or {})}
        self.popen = subprocess.Popen(
            [sys.executable, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def line(self) -> str:
        assert self.popen.stdout
        return self.popen.stdout.readline().strip()

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate()


OWNER = """
import sys
import numpy as np
from llmserve.transfer.base import Region
from llmserve.transfer.ucx import UcxTransport
transport = UcxTransport()
memory = np.full(64 << 20, 5, np.uint8)
transport.register([Region(memory.ctypes.data, memory.nbytes)])
print(transport.describe().hex(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stopped_peer(ends: tuple[End, End]) -> Iterator[tuple[UcxTransport, PeerName, Bytes, Process]]:
    """A peer of 64 MiB that can be stopped."""
    process = Process("-c", OWNER)
    near = ends[0].transport
    memory: Bytes = np.zeros(64 << 20, np.uint8)
    near.register([Region(memory.ctypes.data, memory.nbytes)])
    yield near, near.connect(bytes.fromhex(process.line())), memory, process
    process.end()


LEAVES = """
import sys, time
import numpy as np
from llmserve.transfer.base import Batch, Region, Spans
from llmserve.transfer.ucx import UcxTransport
SIZE = 64 << 20
near, far = UcxTransport(), UcxTransport()
memories = [np.zeros(SIZE, np.uint8) for _ in (near, far)]
regions = [Region(memory.ctypes.data, SIZE) for memory in memories]
near.register(regions[:1])
far.register(regions[1:])
whole = Spans(*(np.array([number]) for number in (0, 0, SIZE)))
column = np.arange(SIZE >> 14)
pieces = Spans(0 * column, column << 14, 0 * column + 16000)
for round in range(40):
    peer = near.connect(far.describe())
    spans = pieces if round & 2 else whole
    transfer = (near.write if round % 2 else near.read)(peer, Batch(spans, spans))
    time.sleep(round * 0.0003)
    near.disconnect(peer) if sys.argv[1] == "requester" else far.register(regions[1:])
    assert transfer.ended.wait(20)
    near.disconnect(peer)
near.close()
far.close()
"""


@pytest.mark.parametrize("leaving", ["requester", "owner"])
def test_an_end_that_leaves_in_the_middle_of_data_crashes_neither(ucxx: None, leaving: str) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES, leaving], timeout=100, check=False)
    assert done.returncode == 0


def all_of(memory: Bytes, piece_bytes: int) -> Batch:
    """Returns pieces that begin every 16 KiB; those of 16 KiB are one."""
    column = np.arange(memory.nbytes >> 14)
    rows = Spans(0 * column, column << 14, 0 * column + piece_bytes)
    return Batch(rows, rows)


def cancel_of_a_stopped_peer(
    near: UcxTransport, peer: PeerName, memory: Bytes, process: Process, piece_bytes: int
) -> tuple[Transfer, TransferError | None]:
    """Stops the peer in the middle of a read; on a busy machine the read can be over by then: no error."""
    memory[:] = 0
    transfer = near.read(peer, all_of(memory, piece_bytes))
    while not memory[1000]:
        assert near.poll(transfer).state is not TransferState.FAILED
    os.kill(process.popen.pid, signal.SIGSTOP)
    try:
        near.cancel(transfer)
    except TransferError as error:
        return transfer, error
    os.kill(process.popen.pid, signal.SIGCONT)
    return transfer, None


@pytest.mark.parametrize("piece_bytes", [16 << 10, 16_000], ids=["one piece", "many pieces"])
def test_a_cancelled_read_from_a_peer_that_stopped_ends_and_its_memory_is_left_alone(
    stopped_peer: tuple[UcxTransport, PeerName, Bytes, Process], piece_bytes: int
) -> None:
    near, peer, memory, process = stopped_peer
    tries = (cancel_of_a_stopped_peer(near, peer, memory, process, piece_bytes) for _ in range(50))
    transfer, error = next(caught for caught in tries if caught[1])
    assert "may still arrive" in str(error)
    assert finish(near, transfer).reason == "ucx: cancelled"
    near.cancel(transfer)
    memory[:] = 0
    os.kill(process.popen.pid, signal.SIGCONT)
    again = finish(near, near.read(peer, one(100, local=60 << 20)))
    assert again.state is TransferState.DONE, again.reason
    memory[60 << 20 :][:100] = 0
    assert not memory.any()


ASKER = """
import sys
import numpy as np
from llmserve.transfer.base import Batch, Region, Spans
from llmserve.transfer.ucx import UcxTransport
transport = UcxTransport()
memory = np.full(64 << 20, 4, np.uint8)
transport.register([Region(memory.ctypes.data, memory.nbytes)])
peer = transport.connect(bytes.fromhex(sys.argv[1]))
column = np.arange(memory.nbytes >> 14)
spans = Spans(0 * column, column << 14, 0 * column + int(sys.argv[3]))
for turn in range(50):
    getattr(transport, sys.argv[2])(peer, Batch(spans, spans))
print("asked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("operation", ["read", "write"])
@pytest.mark.parametrize("piece_bytes", [16 << 10, 16_000], ids=["one piece", "many pieces"])
def test_an_asker_that_dies_in_the_middle_is_forgotten(
    ends: tuple[End, End], operation: str, piece_bytes: int
) -> None:
    near, far = ends
    memory = np.full(64 << 20, 9, np.uint8)
    far.transport.register([Region(memory.ctypes.data, memory.nbytes)])
    asker = Process("-c", ASKER, far.transport.describe().hex(), operation, str(piece_bytes))
    assert asker.line() == "asked"
    asker.end()
    await_members(far, 0)
    assert near.read(far.transport.describe()).state is TransferState.DONE


BOTH = """
import os, signal, sys
import numpy as np
from llmserve.transfer.base import Batch, Region, Spans, TransferState
from llmserve.transfer.select import makers

def left_alone():
    caught = next(line for line in open("/proc/self/status") if line.startswith("SigCgt"))
    environment = {name: value for name, value in os.environ.items() if name.startswith("UCX_")}
    return int(caught.split()[1], 16) >> signal.SIGHUP - 1 & 1, environment

class Pair:
    def __init__(self, kind):
        self.ends = [makers("127.0.0.1")[kind]() for _ in range(2)]
        self.memories = [np.zeros(1 << 20, np.uint8), np.full(1 << 20, 7, np.uint8)]
        self.register()

    def register(self):
        for end, memory in zip(self.ends, self.memories):
            end.register([Region(memory.ctypes.data, memory.nbytes)])

    def read(self):
        near, far = self.ends
        rows = Spans(np.array([0]), np.array([0]), np.array([1 << 20]))
        transfer = near.read(near.connect(far.describe()), Batch(rows, rows))
        while (status := near.poll(transfer)).state is TransferState.RUNNING:
            far.progress()
        assert status.state is TransferState.DONE, status
        assert (self.memories[0] == 7).all()
        self.memories[0][:] = 0

pairs = []
for kind in sys.argv[1:]:
    before = left_alone()
    pairs.append(Pair(kind))
    assert kind != "ucx" or left_alone() == before
for turn in range(3):
    for pair in pairs:
        pair.read()
        np.zeros(64 << 20, np.uint8)[:] = 1  # mapped, touched, unmapped
        pair.register()
for pair in pairs:
    for end in pair.ends:
        end.close()
print("both work", flush=True)
"""


@pytest.mark.parametrize("order", [("ucx", "nixl"), ("nixl", "ucx")])
def test_nixl_and_ucx_work_in_one_process(ucxx: None, order: tuple[str, str]) -> None:
    """Each has its own UCX libraries, and NIXL loads torch under the hooks of ours. Ours leaves signals
    and environment alone."""
    pytest.importorskip("nixl_meta_utils", reason="nixl is not installed")
    process = Process("-c", BOTH, *order)
    try:
        output, _ = process.popen.communicate(timeout=55)
    finally:
        process.end()
    assert process.popen.returncode == 0
    assert output.splitlines()[-1] == "both work"


def test_a_ucx_without_its_registration_cache_is_refused(ucxx: None) -> None:
    """It would crash when a peer dies."""
    source = "from llmserve.transfer.ucx import UcxTransport; UcxTransport()"
    command = [sys.executable, "-c", source]
    environment = {**os.environ, "UCX_MEM_EVENTS": "n"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=55, check=False)
    assert "TransportUnavailable: ucx: no worker: UCX gets no memory events" in result.stderr
