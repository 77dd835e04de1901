"""Free ports for what benches and tests start. They stay held until the process ends, so that no cluster that
starts beside them takes one before its server listens, or while its server restarts."""

import atexit
from contextlib import suppress

from llmserve.core.errors import StartFailed
from llmserve.runner.machine import HeldPorts, check_free

_held = HeldPorts()
atexit.register(_held.close)


def free_port() -> int:
    return _held.pick()


def free_ports_in_a_row(count: int) -> int:
    """Returns the first of them, the only one that is held."""
    while True:
        first = free_port()
        with suppress(StartFailed):
            check_free([f"127.0.0.1:{port}" for port in range(first + 1, first + count)])
            return first
