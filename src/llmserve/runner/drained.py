"""Which workers left on an operator's order: a file for each, in the run's temporary directory.

The supervisor writes it when the worker has ended and starts the worker again once the file is gone, which
is how other shells (`llmserve drain --undo`) ask for it.
"""

import asyncio
from contextlib import suppress
from pathlib import Path

_FOLDER = "drained"
_POLL_SECONDS = 0.25


class DrainedMark:
    """Of one worker."""

    def __init__(self, temp_dir: Path, name: str) -> None:
        self._path = temp_dir / _FOLDER / name

    def set(self) -> None:
        """Errors: OSError."""
        self._path.parent.mkdir(exist_ok=True)
        self._path.touch()

    def clear(self) -> bool:
        """False: there was none."""
        with suppress(FileNotFoundError):
            self._path.unlink()
            return True
        return False

    async def until_cleared(self) -> None:
        while self._path.exists():  # noqa: ASYNC110 - another process removes it
            await asyncio.sleep(_POLL_SECONDS)
