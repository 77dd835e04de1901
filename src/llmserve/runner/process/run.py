"""One process of the cluster, from its start to its end: a role's, or the one that prepares the model."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from llmserve.core.errors import DeadlineExceeded, ModelNotFound
from llmserve.rpc.role import FAILED_WORD, ProcessFailure
from llmserve.runner.logs import append_line, tail
from llmserve.runner.process.child import Child, ProcessCommand
from llmserve.runner.process.policy import exit_text

READY_WORD = "LLMSERVE_READY"
PROGRESS_WORD = "LLMSERVE_PROGRESS"


class StartResult(Enum):
    READY = "ready"
    ENDED = "ended"
    TIMEOUT = "timeout"


class RoleRun:
    """Made inside a loop; the process runs from then on. Errors of the constructor: StartFailed."""

    def __init__(self, command: ProcessCommand, on_progress: Callable[[str], None]) -> None:
        self._log = command.log
        self._on_progress = on_progress
        self._is_ready = asyncio.Event()
        self._ready_at = 0.0
        self.failure: ProcessFailure | None = None  # what the process said of its end
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
            self.failure = ProcessFailure.read(text)
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
        """Returns the exit code; None when the process still runs after timeout_seconds."""
        await asyncio.wait((self._end,), timeout=timeout_seconds)
        return self._end.result() if self._end.done() else None

    @property
    def ready_seconds(self) -> float:
        """Seconds for which the process has been ready."""
        return time.monotonic() - self._ready_at if self._is_ready.is_set() else 0.0

    def terminate(self) -> None:
        self._child.terminate()

    async def aclose(self) -> None:
        """Kills the process if it still runs. Its children are the caller's to end. Idempotent."""
        if not self._end.done():
            self._child.kill()
        await asyncio.wait((self._end,))
        self._child.close()


MODEL_WORD = "LLMSERVE_MODEL"
_TIMEOUT_SECONDS = 4 * 3600.0
_LAST_LINES = 8


class SessionLog(Protocol):
    """Notes which sessions of processes there are, so that they can be ended (guard_link.py)."""

    def session_started(self, pid: int) -> None: ...

    def session_ended(self, pid: int) -> None: ...


@dataclass(slots=True)
class _FetchReply:
    """on_progress: called with what the process does now."""

    on_progress: Callable[[str], None]
    model_dirs: dict[str, str] = field(default_factory=dict)

    def on_line(self, line: str) -> None:
        word, _, text = line.partition(" ")
        if word == PROGRESS_WORD:
            self.on_progress(text)
        elif word == MODEL_WORD:
            found = json.loads(text)
            self.model_dirs[found["name"]] = found["path"]


async def prepare_models(
    command: ProcessCommand, sessions: SessionLog, on_progress: Callable[[str], None]
) -> dict[str, str]:
    """Returns the directory of each prepared model, by its name for clients.
    Cancelling kills the process; after that or an error,
    the caller ends its children. Errors: ModelNotFound with what the process said, DeadlineExceeded."""
    answer = _FetchReply(on_progress)
    child = Child(command, answer.on_line)
    sessions.session_started(child.pid)
    try:
        code = await asyncio.wait_for(child.wait(), _TIMEOUT_SECONDS)
    except TimeoutError:
        raise DeadlineExceeded(f"the models were not prepared within {_TIMEOUT_SECONDS:.0f} s") from None
    finally:
        child.kill()
        await child.wait()
        child.close()
    if code != 0 or not answer.model_dirs:
        raise ModelNotFound(_explain(code, tail(command.log, _LAST_LINES)))
    sessions.session_ended(child.pid)
    return answer.model_dirs


def _explain(code: int, said: list[str]) -> str:
    """A process that was killed could not say so itself."""
    how = [] if said and code >= 0 else [f"the preparation of the model ended: {exit_text(code)}"]
    return "\n".join([*said, *how])
