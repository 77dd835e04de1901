"""python -m llmserve.doctor.baseline: measures what this machine can do without any transport.

It copies in memory, and sends over a plain TCP socket to a process of its own (`baseline far HOST PORT`).
It prints one TrialReport, and ends when its stdin does.
"""

import socket
import subprocess
import sys
from collections.abc import Callable

import numpy as np

from llmserve.doctor.transport_pair import BYTES, HOST, best_seconds
from llmserve.doctor.trial import TrialOutcome, TrialReport
from llmserve.models.converted import end_with_stdin
from llmserve.transfer.twosided.wire import receive_into, tune

COPY, SOCKET = "copy", "socket"
_SECONDS = 0.3
_WAIT_SECONDS = 10.0
_ASK = b"?"


def main() -> None:
    if sys.argv[1:2] == ["far"]:
        _send_when_asked(sys.argv[2], int(sys.argv[3]))
        return
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
        command = [sys.executable, "-P", "-m", "llmserve.doctor.baseline", "far", HOST, port]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as far:
            try:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(_WAIT_SECONDS)
                    return _best_rate(lambda: _ask_for(connection, memory))
            finally:
                far.kill()


def _ask_for(connection: socket.socket, memory: memoryview) -> None:
    connection.sendall(_ASK)
    receive_into(connection, memory)


def _send_when_asked(host: str, port: int) -> None:
    memory = bytes(BYTES)
    with socket.create_connection((host, port)) as connection:
        tune(connection)
        while connection.recv(len(_ASK)):
            connection.sendall(memory)


def _best_rate(once: Callable[[], object]) -> float:
    """Returns bytes per second. The first call touches the memory and is not counted."""
    once()
    return BYTES / best_seconds(once, _SECONDS)


if __name__ == "__main__":
    main()
