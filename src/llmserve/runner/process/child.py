"""Starts one process, reads its lines, and waits for its end."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmserve.core.errors import StartFailed

_LAUNCH = Path(__file__).with_name("launch.py")
_READ_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 16
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ProcessCommand:
    """arguments: for this Python interpreter. log: the file to which stderr is appended. fds: file
    descriptors that the process inherits under the same numbers."""

    arguments: Sequence[str]
    env: Mapping[str, str]
    log: Path
    fds: tuple[int, ...] = ()


class Child:
    """A running process, leader of a session of its own. Made inside a loop, in which `on_line` gets each
    line of its stdout. Errors of the constructor: StartFailed. Call `close` when the process has ended."""

    def __init__(self, command: ProcessCommand, on_line: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = _spawn(command)
        self._lines = _LineReader(self._loop, self._process, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        """Asks the process itself; it ends its own children."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> int:
        """Returns the exit code, as of subprocess; -N: killed by signal N. All that the process wrote has
        been read."""
        await exited(self._process)
        self._lines.read_rest()
        return self._process.wait()

    def close(self) -> None:
        """Idempotent. Leftover children may still hold the pipe: nobody reads it any more."""
        self._lines.close()


def _spawn(command: ProcessCommand) -> subprocess.Popen[bytes]:
    launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid())]
    try:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log:
            return subprocess.Popen(
                [*launch, sys.executable, *command.arguments],
                env=dict(command.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=command.fds,
            )
    except OSError as error:
        raise StartFailed(f"cannot start a process ({' '.join(command.arguments[:3])}): {error}") from error


async def exited(process: subprocess.Popen[bytes]) -> None:
    """Returns when the process has ended, even if others hold its pipes."""
    if process.poll() is not None:
        return
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:  # a kernel without it
        while process.poll() is None:  # noqa: ASYNC110 - nothing would set an event
            await asyncio.sleep(_POLL_SECONDS)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


class _LineReader:
    """Reads lines from a pipe without waiting for its end: grandchildren may hold it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        process: subprocess.Popen[bytes],
        on_line: Callable[[str], None],
    ) -> None:
        assert process.stdout is not None, "stdout is a pipe"
        self._loop = loop
        self._pipe = process.stdout
        self._on_line = on_line
        self._rest = b""
        os.set_blocking(self._pipe.fileno(), False)
        loop.add_reader(self._pipe.fileno(), self._read)

    def read_rest(self) -> None:
        """The last line may lack its end."""
        while self._read():
            pass
        if self._rest:
            self._split(b"\n")

    def _read(self) -> bool:
        """Returns whether there may be more."""
        if self._pipe.closed:
            return False
        with suppress(BlockingIOError):
            data = os.read(self._pipe.fileno(), _READ_BYTES)
            if data:
                self._split(data)
                return True
            self.close()
        return False

    def _split(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._on_line(line.decode(errors="replace").rstrip("\r"))

    def close(self) -> None:
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
