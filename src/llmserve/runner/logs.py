"""Log files of the roles: one each in the run's log directory, `NAME.log`.

A role's processes hold it open and append to it, for as long as they live. So it is kept short from outside:
what it has is copied to `NAME.1.log`, and it is emptied. `NAME.previous.log` is of the run before.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llmserve.core.errors import StartFailed

_TAIL_BYTES = 32 << 10
_PIECE_BYTES = 1 << 20


def older(log: Path) -> Path:
    """Where the lines before those of `log` are, if it has been emptied in this run."""
    return log.with_suffix(".1.log")


def begin(log: Path) -> None:
    """An empty file; what the last run wrote last is kept as `<name>.previous.log`. Errors: StartFailed."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        older(log).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            os.replace(log, log.with_suffix(".previous.log"))
        log.touch()
    except OSError as error:
        raise StartFailed(f"{log}: cannot be used as log file: {error.strerror}") from error


def begun(folder: Path) -> list[str]:
    """Names of the processes that have a log there."""
    return sorted(path.stem for path in folder.glob("*.log") if "." not in path.stem)


def shorten(log: Path, most_bytes: int) -> None:
    """Empties a log that is longer, and keeps what it had. May block; never fails. A line that is written in
    the microseconds between the last look and the emptying is lost; so is all of it where there is no room
    for a second file, since a log must not fill the disk."""
    with suppress(OSError), log.open("r+b") as file:
        if os.fstat(file.fileno()).st_size > most_bytes:
            _keep(file, older(log))
            file.truncate(0)


def _keep(file: BinaryIO, at: Path) -> None:
    """Whoever reads what was there before reads on in it."""
    fresh = at.with_suffix(".new")
    try:
        with fresh.open("wb") as kept:
            while piece := file.read(_PIECE_BYTES):
                kept.write(piece)
        os.replace(fresh, at)
    except OSError:
        fresh.unlink(missing_ok=True)


def append_line(log: Path, line: str) -> None:
    with suppress(OSError), log.open("a") as file:
        file.write(f"{line}\n")


def tail(log: Path, lines: int) -> list[str]:
    with suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-lines:]
    return []


@dataclass(slots=True)
class _Place:
    """How far a log was read. inode: of which file; 0: of none yet."""

    inode: int = 0
    read_bytes: int = 0


class LogFollower:
    """What a set of growing files has, whole lines only: first all of it, then what is new. A log that was
    emptied or begun anew meanwhile is read on."""

    def __init__(self, logs: dict[str, Path]) -> None:
        self._logs = logs
        self._places = {name: _Place() for name in logs}

    def written(self, name: str) -> Iterator[str]:
        """All lines of the log that were written in this run and are still there. Call it once, to its end,
        before `new_lines`."""
        log, place = self._logs[name], self._places[name]
        rest = b""
        for line in _older_lines(log):
            rest = b"" if line.endswith(b"\n") else line
            if not rest:
                yield _text(line)
        with suppress(OSError), log.open("rb") as file:
            place.inode = os.fstat(file.fileno()).st_ino
            for line in file:
                if line.endswith(b"\n"):
                    place.read_bytes += len(line)
                    yield _text(rest + line)
                    rest = b""

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """Pairs of name and line."""
        for name, log in self._logs.items():
            with suppress(OSError), log.open("rb") as file:
                whole = self._new_bytes(log, file, self._places[name])
                for line in whole.splitlines():
                    yield name, _text(line)

    def _new_bytes(self, log: Path, file: BinaryIO, place: _Place) -> bytes:
        found = os.fstat(file.fileno())
        before = b""
        if found.st_ino != place.inode:
            place.inode, place.read_bytes = found.st_ino, 0
        elif found.st_size < place.read_bytes:
            before, place.read_bytes = _from(older(log), place.read_bytes), 0
        file.seek(place.read_bytes)
        whole, newline, _ = file.read().rpartition(b"\n")
        place.read_bytes += len(whole) + len(newline)
        return before + whole


def _older_lines(log: Path) -> Iterator[bytes]:
    """Also of a file that takes its place while it is read: nothing of that was read before."""
    read = 0
    while True:
        with suppress(OSError), older(log).open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != read:
                read = inode
                yield from file
                continue
        return


def _from(log: Path, at: int) -> bytes:
    with suppress(OSError), log.open("rb") as file:
        file.seek(at)
        return file.read()
    return b""


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")
