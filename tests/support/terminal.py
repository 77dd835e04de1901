"""`llmserve` in a terminal of its own, as a user sees it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PATIENCE_SECONDS = 25.0  # three of them are less than a test may take: then its text is shown
_LINES, _COLUMNS = 60, 140


class Terminal:
    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self._master = master
        self._seen = b""

    def text(self) -> str:
        """All that was read of it, with what moves the cursor."""
        return self._seen.decode(errors="replace")

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.text()[-3000:]
            self.read(0.05)

    def read(self, seconds: float = 0.0) -> None:
        with suppress(OSError):  # its other end is closed
            while select.select([self._master], [], [], seconds)[0]:
                self._seen += os.read(self._master, 1 << 16)
                seconds = 0.0


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    """Killed at the end, if it still runs."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
    command = [sys.executable, "-m", "llmserve.cli", *arguments]
    env = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
    )
    os.close(slave)
    shown = Terminal(process, master)
    try:
        yield shown
    finally:
        process.kill()
        process.wait()
        shown.read()
        os.close(master)
