"""A lock between processes. The kernel gives it back when its holder dies."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmserve.core.errors import DeadlineExceeded
from llmserve.models.prepared import Progress

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
