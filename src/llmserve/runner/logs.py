"""Log files of the roles: one for each in the run's log directory, `NAME.log`.

A role's processes hold the file open and append to it for as long as they live. So it is kept short from
outside: its contents are copied to `NAME.1.log`, and it is emptied. `NAME.previous.log` is the log of the
run before.
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
_HEAD_BYTES = 1 << 10


def older(log: Path) -> Path:
    """Returns the path of the lines before those of `log`, if it has been emptied in this run."""
    return log.with_suffix(".1.log")


def begin(log: Path) -> None:
    """Makes an empty log. The last lines of the run before are kept as `NAME.previous.log`. Errors:
    StartFailed."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        older(log).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            os.replace(log, log.with_suffix(".previous.log"))
        log.touch()
    except OSError as error:
        raise StartFailed(f"{log}: cannot be used as log file: {error.strerror}") from error


def begun(folder: Path) -> list[str]:
    """Returns the names of the processes that have a log there."""
    return sorted(path.stem for path in folder.glob("*.log") if "." not in path.stem)


def shorten(log: Path, most_bytes: int) -> None:
    """Empties a log that is longer than most_bytes, and keeps its contents. May block; never fails. A line
    that is written between the last read, which found nothing more, and the emptying right after it is
    lost. The whole contents are lost when there is no room for a second file: a log must not fill the
    disk."""
    with suppress(OSError), log.open("r+b") as file:
        if os.fstat(file.fileno()).st_size > most_bytes:
            _keep(file, older(log))
            file.truncate(0)


def _keep(file: BinaryIO, at: Path) -> None:
    """A reader of the old copy goes on reading in it. Lines written during the copy are copied last, so
    that nothing is left to do before the emptying."""
    fresh = at.with_suffix(".new")
    try:
        with fresh.open("wb") as kept:
            _copy(file, kept)
            os.replace(fresh, at)
            _copy(file, kept)
    except OSError:
        fresh.unlink(missing_ok=True)


def _copy(file: BinaryIO, kept: BinaryIO) -> None:
    for piece in _pieces(file):
        kept.write(piece)
        kept.flush()


def append_line(log: Path, line: str) -> None:
    with suppress(OSError), log.open("a") as file:
        file.write(f"{line}\n")


def tail(log: Path, lines: int) -> list[str]:
    with suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        *whole, rest = file.read().split(b"\n")
        return [_text(line) for line in ([*whole, rest] if rest else whole)[-lines:]]
    return []


@dataclass(slots=True)
class _Place:
    """How far a log was read. inode: of the log. copy: inode of its copy made when it was emptied last; 0:
    none yet. rest: beginning of the last line, which is not whole yet."""

    inode: int = 0
    copy: int = 0
    read_bytes: int = 0
    rest: bytes = b""

    def lines(self, piece: bytes) -> list[bytes]:
        """Returns the lines that are whole with this piece, which comes next."""
        *whole, self.rest = (self.rest + piece).split(b"\n")
        return whole


class LogFollower:
    """Reads whole lines from a set of growing files: first all of them, then what is new. It reads on in a
    log that was emptied or begun anew."""

    def __init__(self, logs: dict[str, Path]) -> None:
        self._logs = logs
        self._places = {name: _Place() for name in logs}

    def follow(self, logs: dict[str, Path]) -> None:
        """Follows these from now on. Those that are new are read from their beginning."""
        self._logs = logs
        self._places = {name: self._places.get(name) or _Place() for name in logs}

    def written(self, name: str) -> Iterator[str]:
        """Yields all lines of the log that were written in this run and are still there. Call it once, to
        its end, before `new_lines`."""
        return self._new(self._logs[name], self._places[name])

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """Yields pairs of name and line."""
        for name, log in self._logs.items():
            for line in self._new(log, self._places[name]):
                yield name, line

    def _new(self, log: Path, place: _Place) -> Iterator[str]:
        for piece in _new_pieces(log, place):
            for line in place.lines(piece):
                yield _text(line)


def _new_pieces(log: Path, place: _Place) -> Iterator[bytes]:
    with suppress(OSError), log.open("rb") as file:
        inode = os.fstat(file.fileno()).st_ino
        if inode != place.inode:
            place.inode, place.copy, place.read_bytes, place.rest = inode, 0, 0, b""
        yield from _missed(log, file, place)
        file.seek(place.read_bytes)
        for piece in _pieces(file):
            place.read_bytes += len(piece)
            yield piece


def _missed(log: Path, file: BinaryIO, place: _Place) -> Iterator[bytes]:
    """Yields what the log had after the place when it was emptied, also when that happens again meanwhile."""
    while True:
        with suppress(FileNotFoundError), older(log).open("rb") as copy:
            inode = os.fstat(copy.fileno()).st_ino
            if inode != place.copy and not _begin_alike(file, copy):
                copy.seek(place.read_bytes)
                yield from _pieces(copy)
                place.copy, place.read_bytes = inode, 0
                continue
        return


def _begin_alike(log: BinaryIO, copy: BinaryIO) -> bool:
    """Returns True when the log is copied, and not emptied yet."""
    log.seek(0)
    head = copy.read(_HEAD_BYTES)
    return log.read(len(head)) == head


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _text(line: bytes) -> str:
    """Decodes a line as a terminal shows it: of a progress bar, which writes over itself, the last state."""
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
