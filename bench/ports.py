"""Free ports for what benches and tests start. They stay held until the process ends, so that no cluster that
starts beside them takes one before its server listens, or while its server restarts."""

import atexit

from llmserve.runner.machine import HeldPorts

_held = HeldPorts()
atexit.register(_held.close)


def free_port() -> int:
    return _held.pick()
