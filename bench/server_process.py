"""Servers that a bench starts besides a cluster, each in a process of its own."""

import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_STOP_SECONDS = 60.0
_PAUSE_SECONDS = 0.25


def is_serving(
    process: subprocess.Popen[Any],
    url: str,
    within_seconds: float,
    is_ready: Callable[[bytes], bool] = lambda body: True,
) -> bool:
    """Waits until the server answers with a body that is_ready accepts. False: it has ended, or the time is
    over."""
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if is_ready(answer.read()):
                return True
        time.sleep(_PAUSE_SECONDS)
    return False


def stop(process: subprocess.Popen[Any]) -> None:
    """By force if it takes too long."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
