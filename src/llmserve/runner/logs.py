"""Log files of the roles: one each in the run's log directory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llmserve.core.errors import StartFailed

_TAIL_BYTES = 32 << 10


def begin(log: Path) -> None:
    """An empty file; what the last run wrote is kept as `<name>.previous.log`. Errors: StartFailed."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.replace(log, log.with_suffix(".previous.log"))
        log.touch()
    except OSError as error:
        raise StartFailed(f"{log}: cannot be used as log file: {error.strerror}") from error


def append_line(log: Path, line: str) -> None:
    with suppress(OSError), log.open("a") as file:
        file.write(f"{line}\n")


def tail(log: Path, lines: int) -> list[str]:
    with suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-lines:]
    return []


class LogFollower:
    """What is new in a set of growing files, whole lines only."""

    def __init__(self, logs: dict[str, Path]) -> None:
        self._logs = logs
        self._read_bytes = dict.fromkeys(logs, 0)

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """Pairs of name and line."""
        for name, log in self._logs.items():
            with suppress(OSError), log.open("rb") as file:
                file.seek(self._read_bytes[name])
                whole, newline, _ = file.read().rpartition(b"\n")
                self._read_bytes[name] += len(whole) + len(newline)
                for line in whole.decode(errors="replace").splitlines():
                    yield name, line
