"""The guard: what is left of a cluster when its supervisor dies, even by SIGKILL, ends here.

A process of its own session that reads lines from a pipe. The supervisor holds the other end; when it
is gone, however it went, the pipe ends and the guard clears up. After an ordered stop it finds
nothing to do. Standard library only, run as `python -I -S -c BOOT ROOT MARK`.

Lines: `session PID`, `forget PID` (its processes are gone), `shm PATH`, `dir PATH` and `state PATH`.
"""

import os
import shutil
import signal
import sys
from contextlib import suppress
from typing import BinaryIO

from llmserve.runner.processes import Family, end, members, remove_unused_shared_memory, shared_memory

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from llmserve.runner.guard import main; main(sys.argv[2])"
)
TERM_SECONDS = 5.0


class Remains:
    """What the guard was told to clear up."""

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
        """Idempotent."""
        family = Family(self.mark, frozenset(self.sessions))
        self.shared_memory |= shared_memory(members(family))
        end(lambda: members(family), TERM_SECONDS)
        remove_unused_shared_memory(self.shared_memory)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        for path in self.state_files:
            self._remove_state(path)

    def _remove_state(self, path: str) -> None:
        """Unless it is already that of the next cluster in the same place."""
        with suppress(OSError):
            with open(path, encoding="utf-8") as file:
                ours = self.mark.rstrip("/") in file.read()
            if ours:
                os.unlink(path)


def follow(lines: BinaryIO, remains: Remains) -> None:
    """Until the pipe ends. A last line that is not whole is left out."""
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
