"""One process of a role, from its start to its end."""

import asyncio
import time
from collections.abc import Callable
from enum import Enum

from llmserve.rpc.role import FAILED_WORD, Failure
from llmserve.runner.child import Child, Command
from llmserve.runner.logs import append_line

READY_WORD = "LLMSERVE_READY"
PROGRESS_WORD = "LLMSERVE_PROGRESS"


class StartResult(Enum):
    READY = "ready"
    ENDED = "ended"
    TIMEOUT = "timeout"


class RoleRun:
    """Constructed inside a loop; the process runs from then on. Errors of the constructor: StartFailed."""

    def __init__(self, command: Command, on_progress: Callable[[str], None]) -> None:
        self._log = command.log
        self._on_progress = on_progress
        self._is_ready = asyncio.Event()
        self._ready_at = 0.0
        self.failure: Failure | None = None  # what the process said of its end
        self._child = Child(command, self._on_line)
        self._end = asyncio.create_task(self._child.wait(), name=f"run.{self._child.pid}.end")

    @property
    def pid(self) -> int:
        return self._child.pid

    def _on_line(self, line: str) -> None:
        word, _, text = line.partition(" ")
        if word == READY_WORD:
            self._ready_at = time.monotonic()
            self._is_ready.set()
        elif word == PROGRESS_WORD:
            self._on_progress(text)
        elif word == FAILED_WORD:
            self._read_failure(text)
        else:
            append_line(self._log, line)

    def _read_failure(self, text: str) -> None:
        try:
            self.failure = Failure.read(text)
        except (ValueError, TypeError, KeyError):
            append_line(self._log, f"{FAILED_WORD} {text}")

    async def until_ready(self, timeout_seconds: float) -> StartResult:
        ready = asyncio.create_task(self._is_ready.wait(), name=f"run.{self.pid}.ready")
        try:
            await asyncio.wait(
                (ready, self._end), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ready.cancel()
        if self._end.done():  # also when it was ready for a moment
            return StartResult.ENDED
        return StartResult.READY if self._is_ready.is_set() else StartResult.TIMEOUT

    async def until_ended(self, timeout_seconds: float | None = None) -> int | None:
        """The exit code; None when it still runs after timeout_seconds."""
        await asyncio.wait((self._end,), timeout=timeout_seconds)
        return self._end.result() if self._end.done() else None

    @property
    def ready_seconds(self) -> float:
        """How long it has been ready."""
        return time.monotonic() - self._ready_at if self._is_ready.is_set() else 0.0

    def terminate(self) -> None:
        self._child.terminate()

    def kill(self) -> None:
        self._child.kill()

    async def aclose(self) -> None:
        """Kills the process if it still runs. Its children are the keeper's business. Idempotent."""
        if not self._end.done():
            self._child.kill()
        await asyncio.wait((self._end,))
        self._child.close()
