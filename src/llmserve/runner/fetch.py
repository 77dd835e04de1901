"""The model is prepared by a process of its own: stopping kills it, and its memory is given back."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from llmserve.core.errors import DeadlineExceeded, ModelNotFound
from llmserve.runner.child import Child, Command
from llmserve.runner.logs import tail
from llmserve.runner.policy import exit_text
from llmserve.runner.run import PROGRESS_WORD

MODEL_WORD = "LLMSERVE_MODEL"
_TIMEOUT_SECONDS = 4 * 3600.0
_LAST_LINES = 8


class Sessions(Protocol):
    """Is told of sessions of processes, so that they can be ended (guard_link.py)."""

    def session_started(self, pid: int) -> None: ...

    def session_ended(self, pid: int) -> None: ...


@dataclass(slots=True)
class _Answer:
    """on_progress gets what the process does now."""

    on_progress: Callable[[str], None]
    model_dirs: list[str] = field(default_factory=list)

    def on_line(self, line: str) -> None:
        word, _, text = line.partition(" ")
        if word == PROGRESS_WORD:
            self.on_progress(text)
        elif word == MODEL_WORD:
            self.model_dirs.append(json.loads(text)["path"])


async def prepare_model(command: Command, sessions: Sessions, on_progress: Callable[[str], None]) -> str:
    """The directory of the prepared model. Cancelling kills the process; after that or an error, its
    children are the caller's to end. Errors: ModelNotFound with what the process said, DeadlineExceeded."""
    answer = _Answer(on_progress)
    child = Child(command, answer.on_line)
    sessions.session_started(child.pid)
    try:
        code = await asyncio.wait_for(child.wait(), _TIMEOUT_SECONDS)
    except TimeoutError:
        raise DeadlineExceeded(f"the model was not prepared within {_TIMEOUT_SECONDS:.0f} s") from None
    finally:
        child.kill()
        await child.wait()
        child.close()
    if code != 0 or not answer.model_dirs:
        raise ModelNotFound(_explain(code, tail(command.log, _LAST_LINES)))
    sessions.session_ended(child.pid)
    return answer.model_dirs[-1]


def _explain(code: int, said: list[str]) -> str:
    """A process that was killed could not say so itself."""
    how = [] if said and code >= 0 else [f"the preparation of the model ended: {exit_text(code)}"]
    return "\n".join([*said, *how])
