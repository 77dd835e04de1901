"""The model is prepared by a process of its own: stopping kills it, and its memory is given back."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from llmserve.core.errors import DeadlineExceeded, ModelNotFound
from llmserve.runner.child import Child, Command
from llmserve.runner.logs import tail
from llmserve.runner.run import PROGRESS_WORD

MODEL_WORD = "LLMSERVE_MODEL"
_TIMEOUT_SECONDS = 4 * 3600.0
_LAST_LINES = 8


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


async def prepare_model(
    command: Command, started: Callable[[int], None], on_progress: Callable[[str], None]
) -> str:
    """The directory of the prepared model. `started` gets the pid. Cancelling kills the process; its
    children are the caller's to end. Errors: ModelNotFound with what the process said, DeadlineExceeded."""
    answer = _Answer(on_progress)
    child = Child(command, answer.on_line)
    started(child.pid)
    try:
        code = await asyncio.wait_for(child.wait(), _TIMEOUT_SECONDS)
    except TimeoutError:
        raise DeadlineExceeded(f"the model was not prepared within {_TIMEOUT_SECONDS:.0f} s") from None
    finally:
        child.kill()
        child.close()
    if code != 0 or not answer.model_dirs:
        raise ModelNotFound(
            "\n".join(tail(command.log, _LAST_LINES)) or f"preparing the model: exit code {code}"
        )
    return answer.model_dirs[-1]
