"""What all steps of preparing a model share: reports of progress, a lock between processes, atomic writes."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmserve.core.errors import DeadlineExceeded

Progress = Callable[[str], None]
"""Is told in a few words what the preparation does now, whenever that changes."""


def silent(text: str) -> None:
    """A Progress that nobody looks at."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """path: a directory with config.json, weights and tokenizer; nobody may write there.
    identity: names by their contents all files from which an engine computes (models/directory.py)."""

    path: Path
    name: str
    identity: str
    source: str


_POLL_SECONDS = 0.1


@contextmanager
def file_lock(path: Path, progress: Progress, waits_for: str, timeout_seconds: float) -> Iterator[None]:
    """Holds the lock file's lock; reports once that it waits. Errors: DeadlineExceeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not _try(file.fileno()):
            progress(f"waiting for another process that {waits_for}")
            deadline = time.monotonic() + timeout_seconds
            while not _try(file.fileno()):
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(
                        f"waited {timeout_seconds:.0f} s for another process that {waits_for} ({path})"
                    )
                time.sleep(_POLL_SECONDS)
        yield


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
