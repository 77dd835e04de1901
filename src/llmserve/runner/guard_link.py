"""The supervisor's end of the guard: starts it, tells it what there is, replaces it should it die."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

from llmserve.core.errors import StartFailed
from llmserve.core.tasks import TaskOwner
from llmserve.runner.guard import BOOT

_ROOT = Path(__file__).parents[2]
_END_SECONDS = 30.0
_PAUSE_SECONDS = 1.0


class GuardLink:
    """Life: start (once) -> tell ... -> aclose (idempotent), which waits for what the guard clears up."""

    def __init__(self, mark: str, tasks: TaskOwner) -> None:
        self._mark = mark
        self._tasks = tasks
        self._told: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._closing = False

    async def start(self) -> None:
        """Errors: StartFailed."""
        await self._spawn()
        self._tasks.spawn("guard", self._replace_when_dead())

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def session_started(self, pid: int) -> None:
        self._tell(f"session {pid}")

    def session_ended(self, pid: int) -> None:
        """All its processes are gone; the number may come to mean another session."""
        self._tell(f"forget {pid}")

    def shared_memory(self, paths: set[str]) -> None:
        for path in sorted(paths):
            self._tell(f"shm {path}")

    def remove_at_end(self, folder: Path, state_file: Path) -> None:
        self._tell(f"dir {folder}")
        self._tell(f"state {state_file}")

    def _tell(self, line: str) -> None:
        if "\n" not in line and line not in self._told:
            self._told.append(line)
            self._write(line)
        self._compact(line)

    def _compact(self, line: str) -> None:
        """A session that came and went need not be told to the next guard."""
        word, _, pid = line.partition(" ")
        if word == "forget":
            self._told = [one for one in self._told if one not in (line, f"session {pid}")]

    def _write(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError, RuntimeError):
                self._process.stdin.write(f"{line}\n".encode())

    async def _spawn(self) -> None:
        command = (sys.executable, "-I", "-S", "-c", BOOT, str(_ROOT), self._mark)
        null = asyncio.subprocess.DEVNULL
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=null,
                stderr=null,
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(f"cannot start the guard process: {error}") from error
        for line in self._told:
            self._write(line)

    async def _replace_when_dead(self) -> None:
        while self._process is not None:
            await self._process.wait()
            if self._closing:
                return
            await asyncio.sleep(_PAUSE_SECONDS)
            await self._spawn()

    async def aclose(self) -> None:
        self._closing = True
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), _END_SECONDS)
