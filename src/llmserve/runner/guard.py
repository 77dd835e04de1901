"""The guard ends what is left of a cluster when its supervisor dies, even by SIGKILL.

It is a process of its own session that reads lines from a pipe. The supervisor holds the other end; when
the supervisor is gone, the pipe ends and the guard clears up. After an ordered stop it finds nothing to
do. It uses the standard library only and runs as `python -I -S -c BOOT ROOT MARK`.

Lines: `session PID`, `forget PID` (its processes are gone), `shm PATH`, `dir PATH` and `state PATH`.
"""

import os
import shutil
import signal
import sys
from contextlib import suppress
from typing import BinaryIO

from llmserve.runner.process.family import Family, end

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from llmserve.runner.guard import main; main(sys.argv[2])"
)
_TERM_SECONDS = 5.0


class Remains:
    """What the guard is to clear up, a line of the pipe for each."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.sessions: set[int] = set()
        self.shared_memory: set[str] = set()
        self.folders: set[str] = set()
        self.state_files: set[str] = set()

    def note(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "session":
            self.sessions.add(int(rest))
        elif word == "forget":
            self.sessions.discard(int(rest))
        elif word == "shm":
            self.shared_memory.add(rest)
        elif word == "dir":
            self.folders.add(rest)
        elif word == "state":
            self.state_files.add(rest)

    def clear(self) -> None:
        """Ends the processes and removes the files. Idempotent."""
        end(Family(self.mark, frozenset(self.sessions)), _TERM_SECONDS, self.shared_memory)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        for path in self.state_files:
            self._remove_state(path)

    def _remove_state(self, path: str) -> None:
        """The file may already be that of the next cluster in the same place, which stays."""
        with suppress(OSError):
            with open(path, encoding="utf-8") as file:
                ours = self.mark.rstrip("/") in file.read()
            if ours:
                os.unlink(path)


def follow(lines: BinaryIO, remains: Remains) -> None:
    """Returns when the pipe ends. A last line that is not whole is left out."""
    for line in lines:
        if line.endswith(b"\n"):
            remains.note(line.decode().rstrip("\n"))


def main(mark: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    remains = Remains(mark)
    follow(sys.stdin.buffer, remains)
    remains.clear()
