"""What all steps of preparing a model share: reports of progress, a lock between processes, atomic writes."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmserve.core.errors import DeadlineExceeded

Progress = Callable[[str], None]
"""Receives a few words on what the preparation does now, whenever that changes."""

_POLL_SECONDS = 0.1


def silent(text: str) -> None:
    """Is a Progress that drops its text."""


@contextmanager
def file_lock(path: Path, progress: Progress, waits_for: str, timeout_seconds: float) -> Iterator[None]:
    """Holds a lock between processes, which the kernel frees when its holder dies. Reports once that it
    waits. Errors: DeadlineExceeded."""
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


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        fresh.write_text(text)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
