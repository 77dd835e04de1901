"""The supervisor's end of the guard: starts it, reports to it, and replaces it when it dies."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from llmserve.core.errors import StartFailed
from llmserve.core.tasks import TaskOwner
from llmserve.runner.guard import BOOT
from llmserve.runner.process.child import exited

_ROOT = Path(__file__).parents[2]
_END_SECONDS = 30.0
_PAUSE_SECONDS = 1.0


class GuardLink:
    """Life: start (once) -> reports ... -> aclose (idempotent), which waits until the guard has cleared
    up."""

    def __init__(self, mark: str, tasks: TaskOwner) -> None:
        self._mark = mark
        self._tasks = tasks
        self._reports: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Errors: StartFailed."""
        self._process = self._spawn()
        self._tasks.spawn("guard", self._replace_when_dead())

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def session_started(self, pid: int) -> None:
        self._report(f"session {pid}")

    def session_ended(self, pid: int) -> None:
        """All processes of the session are gone; its number may come to mean another session."""
        self._report(f"forget {pid}")
        self._reports = [one for one in self._reports if one not in (f"forget {pid}", f"session {pid}")]

    def shared_memory(self, paths: set[str]) -> None:
        for path in sorted(paths):
            self._report(f"shm {path}")

    def remove_at_end(self, folders: Iterable[Path], state_file: Path) -> None:
        for folder in folders:
            self._report(f"dir {folder}")
        self._report(f"state {state_file}")

    def _report(self, line: str) -> None:
        if line not in self._reports:
            self._reports.append(line)
            _write(self._process, line)

    def _spawn(self) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(
                (sys.executable, "-I", "-S", "-c", BOOT, str(_ROOT), self._mark),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise StartFailed(f"cannot start the guard process: {error}") from error
        assert process.stdin is not None, "stdin is a pipe"
        os.set_blocking(process.stdin.fileno(), False)  # a guard that does not read must not stop us
        for line in self._reports:
            _write(process, line)
        return process

    async def _replace_when_dead(self) -> None:
        while self._process is not None:
            await exited(self._process)
            self._process.poll()  # no zombie of it is left
            _close(self._process)
            await asyncio.sleep(_PAUSE_SECONDS)
            with suppress(StartFailed):  # tried again after the next pause
                self._process = self._spawn()

    async def aclose(self) -> None:
        """Call it after the tasks of the owner have ended."""
        process, self._process = self._process, None
        if process is None:
            return
        _close(process)
        with suppress(TimeoutError):
            await asyncio.wait_for(exited(process), _END_SECONDS)
        process.poll()


def _write(process: subprocess.Popen[bytes] | None, line: str) -> None:
    if process is not None and process.stdin is not None and not process.stdin.closed:
        with suppress(OSError):
            process.stdin.write(f"{line}\n".encode())


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
