"""python -m llmserve.doctor.measure WHAT ...: the processes of a trial. Each ends when its stdin does.

`near KIND` starts `far KIND`, reads its memory over the transport, compares the bytes, measures, and prints
one TrialReport. `far KIND` holds memory with known bytes and prints the transport's description of it.
`plain` measures what this machine can do without any transport, and prints one TrialReport: it copies in
memory, and reads from a plain TCP socket of `plain_far HOST PORT`, which it kills.
"""

import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt

from llmserve.core.errors import LLMServeError, TransferError, TransportUnavailable
from llmserve.doctor.trial import TrialOutcome, TrialReport, say_step
from llmserve.models.converted import end_with_stdin
from llmserve.transfer.base import Batch, PeerName, Region, Spans, TransferState, Transport
from llmserve.transfer.select import makers
from llmserve.transfer.twosided.wire import receive_into, tune

BYTES = 16 << 20
HOST = "127.0.0.1"
COPY, READ, SOCKET = "copy", "read", "socket"
MODULE = "llmserve.doctor.measure"
_DESCRIPTION_WORD = "LLMSERVE_DESCRIPTION"
_PIECES = 128  # a block in one layer is about as large as one of these
_SECONDS, _PLAIN_SECONDS = 0.5, 0.3
_LEAST_ROUNDS = 3
_READ_SECONDS = 5.0
_POLL_SECONDS = 0.0001
_PROGRESS_SECONDS = 0.001
_END_SECONDS = 3.0
_WAIT_SECONDS = 10.0
_ASK = b"?"


def near(kind: str) -> None:
    end_with_stdin()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is reported, without a core dump
    _tried(kind).say()


def _tried(kind: str) -> TrialReport:
    with _far_process(kind) as far:  # both import at the same time
        say_step("loading")
        try:
            transport = makers(HOST)[kind]()
        except TransportUnavailable as error:
            return TrialReport(TrialOutcome.UNAVAILABLE, error.message)
        try:
            return TrialReport(TrialOutcome.MEASURED, rates={READ: BYTES / _best_seconds(transport, far)})
        except TransferError as error:
            return TrialReport(TrialOutcome.FAILED, error.message)
        finally:
            transport.close()


@contextmanager
def _far_process(kind: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-m", MODULE, "far", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as far:
        try:
            yield far
        finally:
            assert far.stdin is not None, "a pipe"
            far.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                far.wait(_END_SECONDS)
            far.kill()


def _best_seconds(transport: Transport, far: subprocess.Popen[str]) -> float:
    """Returns the seconds that reading all of the far memory takes. Errors: TransferError."""
    memory = np.zeros(BYTES, np.uint8)
    transport.register([Region(memory.ctypes.data, memory.nbytes)])
    say_step("connecting")
    peer = transport.connect(_description(far))
    batch = _scattered()
    say_step("reading")
    _read(transport, peer, batch)
    if not _is_right(memory):
        raise TransferError("the bytes that arrived are not those that were sent")
    return best_seconds(lambda: _read(transport, peer, batch), _SECONDS)


def best_seconds(once: Callable[[], object], seconds: float) -> float:
    """Returns the shortest time of one call, of at least three calls that take `seconds` together."""
    times: list[float] = []
    while len(times) < _LEAST_ROUNDS or sum(times) < seconds:
        started = time.perf_counter()
        once()
        times.append(time.perf_counter() - started)
    return min(times)


def _description(far: subprocess.Popen[str]) -> bytes:
    assert far.stdout is not None, "a pipe"
    for line in far.stdout:
        word, _, text = line.partition(" ")
        if word == _DESCRIPTION_WORD:
            return bytes.fromhex(text)
    raise TransferError("the process at the other end ended")


def _scattered() -> Batch:
    """The pieces lie in reverse order at the near side, so that none joins its neighbour."""
    each = BYTES // _PIECES
    offsets = np.arange(_PIECES, dtype=np.int64) * each
    regions, lengths = np.zeros(_PIECES, np.int64), np.full(_PIECES, each, np.int64)
    return Batch(Spans(regions, offsets[::-1].copy(), lengths), Spans(regions, offsets, lengths))


def _is_right(memory: npt.NDArray[np.uint8]) -> bool:
    return np.array_equal(memory.reshape(_PIECES, -1)[::-1], known_bytes().reshape(_PIECES, -1))


def _read(transport: Transport, peer: PeerName, batch: Batch) -> None:
    """Errors: TransferError."""
    deadline = time.monotonic() + _READ_SECONDS
    transfer = transport.read(peer, batch)
    while (status := transport.poll(transfer)).state is TransferState.RUNNING:
        if time.monotonic() > deadline:
            raise TransferError(f"{BYTES >> 20} MiB did not arrive within {_READ_SECONDS:g} s")
        if not transport.needs_progress:  # else polling is what moves the bytes
            time.sleep(_POLL_SECONDS)
    if status.state is TransferState.FAILED:
        raise TransferError(status.reason)


def known_bytes() -> npt.NDArray[np.uint8]:
    """Returns the same bytes in every process."""
    tile = np.random.default_rng(7).integers(0, 256, 1_048_583, np.uint8)
    return np.resize(tile, BYTES)


def serve(transport: Transport) -> None:
    memory = known_bytes()
    transport.register([Region(memory.ctypes.data, memory.nbytes)])
    print(_DESCRIPTION_WORD, transport.describe().hex(), flush=True)
    pause = _PROGRESS_SECONDS if transport.needs_progress else None
    while not select.select([sys.stdin], [], [], pause)[0]:
        transport.progress()


def far(kind: str) -> int:
    try:
        transport = makers(HOST)[kind]()
    except LLMServeError as error:
        print(error.message, file=sys.stderr)
        return 1
    try:
        serve(transport)
    finally:
        transport.close()
    return 0


def plain() -> None:
    end_with_stdin()
    try:
        TrialReport(TrialOutcome.MEASURED, rates={COPY: copy_rate(), SOCKET: socket_rate()}).say()
    except OSError as error:
        TrialReport(TrialOutcome.FAILED, f"a plain socket on {HOST}: {error}").say()


def copy_rate() -> float:
    source, target = np.ones(BYTES, np.uint8), np.zeros(BYTES, np.uint8)
    return _best_rate(lambda: np.copyto(target, source))


def socket_rate() -> float:
    """Errors: OSError."""
    memory = memoryview(bytearray(BYTES))
    with socket.create_server((HOST, 0)) as server:
        server.settimeout(_WAIT_SECONDS)
        port = str(server.getsockname()[1])
        command = [sys.executable, "-P", "-m", MODULE, "plain_far", HOST, port]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as sender:
            try:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(_WAIT_SECONDS)
                    return _best_rate(lambda: _ask_for(connection, memory))
            finally:
                sender.kill()


def _ask_for(connection: socket.socket, memory: memoryview) -> None:
    connection.sendall(_ASK)
    receive_into(connection, memory)


def plain_far(host: str, port: str) -> None:
    """Sends the memory whenever it is asked to."""
    memory = bytes(BYTES)
    with socket.create_connection((host, int(port))) as connection:
        tune(connection)
        while connection.recv(len(_ASK)):
            connection.sendall(memory)


def _best_rate(once: Callable[[], object]) -> float:
    """Returns bytes per second. The first call touches the memory and is not counted."""
    once()
    return BYTES / best_seconds(once, _PLAIN_SECONDS)


if __name__ == "__main__":
    sides: dict[str, Callable[..., int | None]] = {
        "near": near,
        "far": far,
        "plain": plain,
        "plain_far": plain_far,
    }
    sys.exit(sides[sys.argv[1]](*sys.argv[2:]))
